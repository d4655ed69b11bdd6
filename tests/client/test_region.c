/* SPDX-License-Identifier: Apache-2.0 */
/* test_region.c — libmemd with memory that it shares with a real daemon: the same bits as over the
 * socket, whatever lies in it and whatever does not; over the death of the daemon; and what is
 * refused.
 *
 *     MEMD=build/daemon/memd MEMD_FAKE_PLUGIN=build/tests/simt/memd-fake.so test_client_region
 */
#include "clients/include/memd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/client/real.h"
#include "tests/random.h"

enum { H = 4, G = 2, D = 8, TOKENS = 700, QUERIES = 3, REGION_BYTES = 64 << 10 };

#define O_FLOATS ((size_t)QUERIES * H * D)
#define LSE_FLOATS ((size_t)QUERIES * H)

/* Places in a region, each a multiple of 64. */
enum { AT_Q = 0, AT_O = 4096, AT_LSE = 8192, AT_ROWS = 16384 };

static struct memd_context open_context(struct memd_client *client, const char *name)
{
    struct memd_model model = {
        .layers = 1, .query_heads = H, .kv_heads = G, .head_dim = D, .dtype = MEMD_FP32
    };
    struct memd_open args = { .name = name, .model = &model, .create = true };
    struct memd_context context;
    struct memd_error err = { 0 };
    if (memd_open(client, &args, &context, &err) < 0) fail_msg("open: %s", err.text);
    return context;
}

static void fill(float *numbers, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) numbers[i] = random_float(&seed);
}

static void append_rows(const struct memd_context *context, const float *rows, size_t tokens)
{
    struct memd_error err = { 0 };
    struct memd_append layer = { .position = 0, .tokens = tokens, .k = rows, .v = rows };
    if (memd_append(context, &layer, 1, MEMD_ACK_COMMITTED, NULL, &err) < 0)
        fail_msg("append: %s", err.text);
}

static struct memd_context full_context(struct memd_client *client)
{
    static float rows[(size_t)TOKENS * G * D];
    fill(rows, (size_t)TOKENS * G * D, 1);
    struct memd_context context = open_context(client, "book");
    append_rows(&context, rows, TOKENS);
    return context;
}

static const uint64_t positions[QUERIES] = { TOKENS, TOKENS, TOKENS };
static const uint64_t limits[QUERIES] = { 5, 300, TOKENS };

static struct memd_query query_of(const struct memd_context *context, const void *q, float *o,
                                  float *lse)
{
    return (struct memd_query){ .context = context,
                                .queries = QUERIES,
                                .q = q,
                                .positions = positions,
                                .limits = limits,
                                .o = o,
                                .lse = lse };
}

static uint64_t sent_by(struct memd_client *client)
{
    struct memd_counters counters;
    memd_get_counters(client, &counters);
    return counters.bytes_sent;
}

static void attend(const struct memd_query *query)
{
    struct memd_error err = { 0 };
    if (memd_attend(query, NULL, &err) < 0) fail_msg("attend: %s", err.text);
}

static struct memd_region *share(struct memd_client *client)
{
    struct memd_region *region = NULL;
    struct memd_error err = { 0 };
    if (memd_share(client, REGION_BYTES, &region, &err) < 0) fail_msg("share: %s", err.text);
    assert_int_equal(memd_region_bytes(region), REGION_BYTES);
    return region;
}

static void the_same_bits(void **state)
{
    struct memd_client *client = real_connect(*state);
    struct memd_context context = full_context(client);
    struct memd_region *region = share(client);
    unsigned char *memory = memd_region_data(region);
    for (size_t i = 0; i < REGION_BYTES; i++) assert_int_equal(memory[i], 0);

    float q[O_FLOATS], o[O_FLOATS], lse[LSE_FLOATS];
    fill(q, O_FLOATS, 2);
    struct memd_query framed = query_of(&context, q, o, lse);
    uint64_t before = sent_by(client);
    attend(&framed);
    uint64_t by_frame = sent_by(client) - before;

    memcpy(memory + AT_Q, q, sizeof q);
    float *shared_o = (float *)(void *)(memory + AT_O),
          *shared_lse = (float *)(void *)(memory + AT_LSE);
    struct memd_query shared = query_of(&context, memory + AT_Q, shared_o, shared_lse);
    before = sent_by(client);
    const struct memd_answer *answer = NULL;
    assert_int_equal(memd_attend(&shared, &answer, NULL), 0);
    assert_true(sent_by(client) - before + sizeof q <= by_frame + 64); /* q stayed at home */
    assert_ptr_equal(answer->o, shared_o);
    assert_ptr_equal(answer->lse, shared_lse);
    assert_memory_equal(shared_o, o, sizeof o);
    assert_memory_equal(shared_lse, lse, sizeof lse);
    memd_free(answer);

    /* Only q, only the answer, half of it, q where it cannot be named. */
    float other_o[O_FLOATS], other_lse[LSE_FLOATS];
    struct memd_query mixed[] = {
        query_of(&context, memory + AT_Q, other_o, other_lse),
        query_of(&context, q, shared_o, shared_lse),
        query_of(&context, q, shared_o, other_lse),
        query_of(&context, memory + AT_ROWS + 4, other_o, other_lse),
    };
    memcpy(memory + AT_ROWS + 4, q, sizeof q);
    for (size_t i = 0; i < sizeof mixed / sizeof mixed[0]; i++) {
        memset(mixed[i].o, 0, sizeof o);
        memset(mixed[i].lse, 0, sizeof lse);
        attend(&mixed[i]);
        assert_memory_equal(mixed[i].o, o, sizeof o);
        assert_memory_equal(mixed[i].lse, lse, sizeof lse);
    }
    assert_int_equal(memd_unshare(region, NULL), 0);
    assert_int_equal(memd_unshare(NULL, NULL), 0);
    memd_close(client);
}

static void rows_and_batches(void **state)
{
    struct memd_client *client = real_connect(*state);
    struct memd_context context = full_context(client), other = open_context(client, "other");
    struct memd_region *region = share(client);
    unsigned char *memory = memd_region_data(region);
    float *rows = (float *)(void *)(memory + AT_ROWS);
    fill(rows, (size_t)100 * G * D, 1);
    append_rows(&other, rows, 100);
    memset(rows, 0, 64); /* they are ours again */
    float wanted[(size_t)100 * G * D], k[G * D], v[G * D];
    fill(wanted, (size_t)100 * G * D, 1);
    struct memd_fetch fetch = {
        .context = &other, .ids = &(uint64_t){ 0 }, .count = 1, .k = k, .v = v
    };
    assert_int_equal(memd_fetch(&fetch, NULL, NULL), 0);
    assert_memory_equal(k, wanted, sizeof k);

    float *shared_k = rows + 1024, *shared_v = rows + 2048;
    fetch.k = shared_k;
    fetch.v = shared_v;
    assert_int_equal(memd_fetch(&fetch, NULL, NULL), 0);
    assert_memory_equal(shared_k, wanted, sizeof k);
    assert_memory_equal(shared_v, wanted, sizeof v);
    memset(shared_k, 0, sizeof k);
    fetch.v = v;
    const struct memd_rows *fetched = NULL;
    assert_int_equal(memd_fetch(&fetch, &fetched, NULL), 0);
    assert_ptr_equal(fetched->k, shared_k);
    assert_memory_equal(fetched->k, wanted, sizeof k);
    assert_memory_equal(fetched->v, wanted, sizeof v);
    memd_free(fetched);

    /* One item of a batch fails, and leaves its place as it is. */
    fill((float *)(void *)(memory + AT_Q), O_FLOATS, 2);
    float *place = (float *)(void *)(memory + AT_O), *lse = (float *)(void *)(memory + AT_LSE);
    struct memd_query queries[2] = { query_of(&context, memory + AT_Q, place, lse),
                                     query_of(&context, memory + AT_Q, place + 512, lse + 512) };
    queries[1].layer = 9;
    memset(place, 0xAB, 4096);
    struct memd_ticket *ticket = NULL;
    assert_int_equal(memd_submit_attend(queries, 2, &ticket, NULL), 0);
    assert_int_equal(memd_wait(ticket, NULL), 0);
    const struct memd_answer *answers = memd_ticket_answers(ticket, NULL);
    assert_int_equal(answers[0].status, 0);
    assert_int_equal(answers[1].status, MEMD_EINVAL);
    memd_ticket_free(ticket);
    for (size_t i = 2048; i < 4096; i++) assert_int_equal(((unsigned char *)place)[i], 0xAB);

    const struct memd_hits *hits = NULL;
    struct memd_query search = query_of(&context, memory + AT_Q, NULL, NULL);
    assert_int_equal(memd_search(&search, 4, &hits, NULL), 0);
    memd_free(hits);
    memd_close(client); /* takes the region along */
}

/* The daemon is killed: the next call connects anew, shares the region again, and is answered. */
static void over_a_restart(void **state)
{
    struct real *daemon = *state;
    struct memd_client *client = real_connect(daemon);
    struct memd_context context = full_context(client);
    struct memd_region *region = share(client), *gone = share(client), *third = share(client);
    unsigned char *memory = memd_region_data(region), *last = memd_region_data(third);
    fill((float *)(void *)(memory + AT_Q), O_FLOATS, 2);
    struct memd_query query = query_of(&context, memory + AT_Q, (float *)(void *)(memory + AT_O),
                                       (float *)(void *)(last + AT_LSE));
    float o[O_FLOATS], lse[LSE_FLOATS];
    attend(&query);
    memcpy(o, query.o, sizeof o);
    memcpy(lse, query.lse, sizeof lse);
    assert_int_equal(memd_unshare(gone, NULL), 0);
    for (int i = 0; i < 3; i++) {
        real_stop(daemon, SIGKILL);
        real_start(daemon);
        memset(query.o, 0, sizeof o);
        memset(query.lse, 0, sizeof lse);
        attend(&query);
        assert_memory_equal(query.o, o, sizeof o);
        assert_memory_equal(query.lse, lse, sizeof lse);
    }
    struct memd_counters counters;
    memd_get_counters(client, &counters);
    assert_int_equal(counters.reconnects, 3);
    const struct memd_status *status = NULL;
    assert_int_equal(memd_status(client, &status, NULL), 0);
    assert_int_equal(status->shared_regions, 2);
    assert_int_equal(status->shared_bytes, 2 * REGION_BYTES);
    assert_true(status->shared_bytes_max > status->shared_bytes);
    memd_free(status);
    real_stop(daemon, SIGKILL);
    real_start(daemon);
    assert_int_equal(memd_unshare(region, NULL), 0); /* no daemon has it, or a new one */
    memd_close(client);
}

static void what_is_refused(void **state)
{
    struct memd_client *client = real_connect(*state);
    struct memd_region *region = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(memd_share(client, 0, &region, &err), MEMD_EINVAL);
    assert_int_equal(memd_share(client, SIZE_MAX, &region, &err), MEMD_ELIMIT);
    assert_int_equal(memd_share(client, REAL_SHARED_BYTES + 1, &region, &err), MEMD_ELIMIT);
    struct memd_region *first = NULL;
    assert_int_equal(memd_share(client, REAL_SHARED_BYTES, &first, &err), 0);
    assert_int_equal(memd_share(client, 4096, &region, &err), MEMD_EFULL);
    assert_non_null(strstr(err.text, "share"));
    assert_int_equal(memd_unshare(first, &err), 0);
    assert_null(region);
    memd_close(client);
}

/* Memory of the device: its addresses here are those of nothing that can be read. */
static void device_memory(void **state)
{
    struct memd_client *client = real_connect(*state);
    struct memd_context context = full_context(client);
    int fd = memfd_create("device", MFD_CLOEXEC); /* what the device that is not there exports */
    assert_int_equal(ftruncate(fd, REGION_BYTES), 0);
    unsigned char *inside = mmap(NULL, REGION_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    unsigned char *address = mmap(NULL, REGION_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                                  0);
    assert_true(inside != MAP_FAILED && address != MAP_FAILED);
    struct memd_region *region = NULL;
    struct memd_error err = { 0 };
    struct memd_device_memory memory = { .address = address,
                                         .bytes = REGION_BYTES,
                                         .descriptor = fd };
    if (memd_share_device(client, &memory, &region, &err) < 0) fail_msg("share: %s", err.text);
    assert_true(memd_region_is_registered(region));

    float q[O_FLOATS], o[O_FLOATS], lse[LSE_FLOATS];
    fill(q, O_FLOATS, 2);
    struct memd_query framed = query_of(&context, q, o, lse);
    attend(&framed);
    memcpy(inside + AT_Q, q, sizeof q);
    struct memd_query query = query_of(&context, address + AT_Q, (float *)(void *)(address + AT_O),
                                       (float *)(void *)(address + AT_LSE));
    attend(&query);
    assert_memory_equal(inside + AT_O, o, sizeof o);
    assert_memory_equal(inside + AT_LSE, lse, sizeof lse);

    float *device_rows = (float *)(void *)(address + AT_ROWS);
    struct memd_fetch fetch = { .context = &context,
                                .ids = &(uint64_t){ 3 },
                                .count = 1,
                                .k = device_rows,
                                .v = device_rows + 1024 };
    float wanted[(size_t)4 * G * D];
    fill(wanted, (size_t)4 * G * D, 1);
    assert_int_equal(memd_fetch(&fetch, NULL, NULL), 0);
    assert_memory_equal(inside + AT_ROWS, wanted + (size_t)3 * G * D, G * D * sizeof(float));

    query.q = address + AT_Q + 4; /* cannot be named, and nobody here can read it */
    assert_int_equal(memd_attend(&query, NULL, &err), MEMD_EINVAL);
    query.q = address + REGION_BYTES - 64;
    assert_int_equal(memd_attend(&query, NULL, &err), MEMD_EINVAL);
    query.q = q;
    query.lse = lse; /* each goes where it can */
    memset(inside + AT_O, 0, sizeof o);
    memset(lse, 0, sizeof lse);
    attend(&query);
    assert_memory_equal(inside + AT_O, o, sizeof o);
    assert_memory_equal(inside + AT_LSE, lse, sizeof lse);
    assert_int_equal(memd_unshare(region, NULL), 0);

    memory.descriptor = -1;
    assert_int_equal(memd_share_device(client, &memory, &region, &err), MEMD_EINVAL);
    unsigned char handle[MEMD_HANDLE_BYTES] = "";
    memory.handle = handle;
    assert_int_equal(memd_share_device(client, &memory, &region, &err), MEMD_EINVAL);
    snprintf((char *)handle, sizeof handle, "%d %d", (int)getpid(), fd);
    if (memd_share_device(client, &memory, &region, &err) < 0) fail_msg("handle: %s", err.text);
    query.q = address + AT_Q;
    query.lse = (float *)(void *)(address + AT_LSE);
    memset(inside + AT_O, 0, sizeof o);
    attend(&query);
    assert_memory_equal(inside + AT_O, o, sizeof o);
    memd_close(client);
    close(fd);
    munmap(inside, REGION_BYTES);
    munmap(address, REGION_BYTES);
}

/* A daemon that was told not to take any. */
static void not_offered(void **state)
{
    struct memd_client *client = real_connect(*state);
    struct memd_region *region = NULL;
    struct memd_error err = { 0 };
    assert_int_equal(memd_share(client, 4096, &region, &err), MEMD_EUNSUPPORTED);
    assert_non_null(strstr(err.text, "does not offer"));
    struct memd_device_memory memory = { .address = &err, .bytes = 64, .descriptor = 0 };
    assert_int_equal(memd_share_device(client, &memory, &region, &err), MEMD_EUNSUPPORTED);
    memd_close(client);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(the_same_bits, real_set_up, real_tear_down),
        cmocka_unit_test_setup_teardown(rows_and_batches, real_set_up, real_tear_down),
        cmocka_unit_test_setup_teardown(over_a_restart, real_set_up, real_tear_down),
        cmocka_unit_test_setup_teardown(what_is_refused, real_set_up, real_tear_down),
        cmocka_unit_test_setup_teardown(device_memory, real_set_up_device, real_tear_down),
        cmocka_unit_test_setup_teardown(not_offered, real_set_up_without, real_tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

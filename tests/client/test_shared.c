/* SPDX-License-Identifier: Apache-2.0 */
/* test_shared.c — what goes over the wire where arrays lie in shared memory: places instead of
 * bytes, a descriptor with the first of them, everything shared again before anything is repeated,
 * whoever else shares or takes back meanwhile; a daemon that does not take a region again, and one
 * that puts an answer where nobody asked for it.
 *
 * The linker puts a function of this file in front of the one that calls end in: between the answer
 * of a call and its return a test does what another thread might do then.
 */
#include "clients/include/memd.h"

#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/arena.h"
#include "tests/client/fake.h"

enum { H = 4, D = 8, REGION_BYTES = 8192, AT_O = 256, AT_LSE = 512 };

/* What the daemon does with an Attend. */
enum behaviour { HONEST, IN_FRAME, ELSEWHERE, HANGS_UP };

struct script {
    enum behaviour behaviour;
    bool honest_later;       /* from the second connection on */
    int refuses;             /* MapMemory on the second connection, with this code */
    int hangs_up_at;         /* the second connection, at that Attend; 0: it does not */
    sem_t *greeting, *greet; /* the second connection's Hello has come, may be answered; or NULL */
    int descriptors;         /* that came */
    uint64_t numbers[8];     /* of regions, in the order in which they came, over all connections */
    int number_count;
    int numbers_before_attend; /* on the second connection */
    int first_of_last;         /* which of numbers is the first of the latest connection */
    uint64_t q_offset, o_offset, lse_offset, payload_bytes; /* of the last attend */
};

/* A frame that may bring a descriptor: the bytes are looked at, then received as others are. */
static int peek_descriptor(int fd)
{
    union {
        char bytes[CMSG_SPACE(4 * sizeof(int))];
        struct cmsghdr aligned;
    } control;
    char byte;
    struct iovec part = { &byte, 1 };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                              .msg_controllen = sizeof control.bytes };
    if (recvmsg(fd, &message, MSG_PEEK) <= 0) return 0;
    const struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    if (head == NULL || head->cmsg_type != SCM_RIGHTS) return 0;
    int came = -1;
    assert(head->cmsg_len == CMSG_LEN(sizeof came)); /* one */
    memcpy(&came, CMSG_DATA(head), sizeof came);
    assert(ftruncate(came, 0) < 0 && ftruncate(came, 1 << 20) < 0); /* sealed both ways */
    close(came);
    return 1;
}

static void greet(int fd, const struct fake_request *request)
{
    const Memd__HelloRequest *hello = (const Memd__HelloRequest *)request->message;
    assert(hello->n_features == 2 && strcmp(hello->features[0], "shared-memory") == 0);
    Memd__HelloReply reply = MEMD__HELLO_REPLY__INIT;
    char *features[] = { (char *)"shared-memory" };
    reply.version = FRAME_VERSION;
    reply.features = features;
    reply.n_features = 1;
    reply.region_bytes_max = REGION_BYTES;
    fake_reply(fd, request, &reply.base, NULL, 0);
}

static void answer_attend(struct script *script, int fd, struct fake_request *request)
{
    const Memd__AttendRequest *attend = (const Memd__AttendRequest *)request->message;
    const Memd__AttendItem *item = attend->items[0];
    script->payload_bytes = request->frame.payload_bytes;
    script->q_offset = item->q->region != 0 ? item->q->offset : UINT64_MAX;
    script->o_offset = item->into_o != NULL ? item->into_o->offset : UINT64_MAX;
    script->lse_offset = item->into_lse != NULL ? item->into_lse->offset : UINT64_MAX;
    size_t shape[3] = { 1, H, D };
    static const float payload[64 + H] = { 0 };
    Memd__AttendAnswer answer = MEMD__ATTEND_ANSWER__INIT, *answers = &answer;
    answer.o = message_make_tensor(&request->arena, DTYPE_FP32, 3, shape, 0);
    answer.lse = message_make_tensor(&request->arena, DTYPE_FP32, 2, shape, 128);
    if (script->behaviour == ELSEWHERE) answer.o->region = 99;
    if (script->behaviour == HONEST && item->into_o != NULL) answer.o = item->into_o;
    if (script->behaviour == HONEST && item->into_lse != NULL) answer.lse = item->into_lse;
    Memd__AttendReply reply = MEMD__ATTEND_REPLY__INIT;
    reply.answers = &answers;
    reply.n_answers = 1;
    fake_reply(fd, request, &reply.base, payload, 128 + H * sizeof(float));
}

static void daemon_script(struct fake *fake, int fd, int number)
{
    struct script *script = fake->arg;
    struct fake_request request = { 0 };
    int came = peek_descriptor(fd), attends = 0;
    script->first_of_last = script->number_count;
    if (number > 0 && script->honest_later) script->behaviour = HONEST;
    for (; fake_receive(fd, &request); came = peek_descriptor(fd)) {
        assert(came == (request.frame.method == METHOD_MAP_MEMORY ? 1 : 0));
        script->descriptors += came;
        if (request.frame.method == METHOD_HELLO && number == 1 && script->greet != NULL) {
            sem_post(script->greeting);
            sem_wait(script->greet);
        }
        if (request.frame.method == METHOD_HELLO) greet(fd, &request);
        if (request.frame.method == METHOD_MAP_MEMORY) {
            const Memd__MapMemoryRequest *map = (const Memd__MapMemoryRequest *)request.message;
            Memd__MapMemoryReply reply = MEMD__MAP_MEMORY_REPLY__INIT;
            assert(script->number_count < 8 && map->bytes == REGION_BYTES && map->kind == 0);
            script->numbers[script->number_count++] = map->region;
            if (number == 1 && script->refuses < 0)
                fake_error(fd, &request, script->refuses, "no room for it");
            else fake_reply(fd, &request, &reply.base, NULL, 0);
        }
        if (request.frame.method == METHOD_UNMAP_MEMORY) {
            Memd__UnmapMemoryReply reply = MEMD__UNMAP_MEMORY_REPLY__INIT;
            fake_reply(fd, &request, &reply.base, NULL, 0);
        }
        if (request.frame.method != METHOD_ATTEND) continue;
        if (number == 1) script->numbers_before_attend = script->number_count;
        if (number == 0 && script->behaviour == HANGS_UP) break;
        if (number == 1 && ++attends == script->hangs_up_at) break;
        answer_attend(script, fd, &request);
    }
    arena_fini(&request.arena);
}

struct memd_ticket;
int __real_ticket_call(struct memd_ticket *ticket, int rc, struct memd_error *err);
int __wrap_ticket_call(struct memd_ticket *ticket, int rc, struct memd_error *err);

/* Of the next call that is answered well, and not of what is asked then. */
static struct {
    const struct memd_query *query;
} meanwhile;

int __wrap_ticket_call(struct memd_ticket *ticket, int rc, struct memd_error *err)
{
    rc = __real_ticket_call(ticket, rc, err);
    const struct memd_query *query = meanwhile.query;
    meanwhile.query = NULL;
    if (rc == 0 && query != NULL) assert(memd_attend(query, NULL, NULL) == 0);
    return rc;
}

/* A region with one query in it, its answer's places behind. */
struct asked {
    struct memd_client *client;
    struct memd_context context;
    struct memd_region *region;
    unsigned char *memory;
    uint64_t position;
    struct memd_query query;
};

static void ask_from(struct asked *asked, const struct fake *fake)
{
    asked->client = fake_client(fake);
    asked->context = fake_context(asked->client);
    struct memd_error err = { 0 };
    if (memd_share(asked->client, REGION_BYTES, &asked->region, &err) < 0) fail_msg("%s", err.text);
    asked->memory = memd_region_data(asked->region);
    asked->query = (struct memd_query){ .context = &asked->context, .queries = 1,
                                        .q = asked->memory, .positions = &asked->position,
                                        .o = (float *)(void *)(asked->memory + AT_O),
                                        .lse = (float *)(void *)(asked->memory + AT_LSE) };
}

static void places_instead_of_bytes(void **state)
{
    (void)state;
    struct script script = { .behaviour = HONEST };
    struct fake fake = { 0 };
    struct asked asked = { 0 };
    fake_open(&fake, daemon_script, &script);
    ask_from(&asked, &fake);
    assert_int_equal(memd_attend(&asked.query, NULL, NULL), 0);
    assert_int_equal(script.payload_bytes, 0);
    assert_int_equal(script.q_offset, 0);
    assert_int_equal(script.o_offset, AT_O);
    assert_int_equal(script.lse_offset, AT_LSE);

    float o[H * D], lse[H];
    asked.query.o = o;
    assert_int_equal(memd_attend(&asked.query, NULL, NULL), 0);
    assert_true(script.o_offset == UINT64_MAX && script.lse_offset == AT_LSE);
    asked.query.lse = lse;
    asked.query.q = asked.memory + 8; /* not from a multiple of 64 on */
    assert_int_equal(memd_attend(&asked.query, NULL, NULL), 0);
    assert_true(script.q_offset == UINT64_MAX && script.payload_bytes == H * D * sizeof(float));
    assert_int_equal(memd_unshare(asked.region, NULL), 0);
    memd_close(asked.client);
    fake_close(&fake);
    assert_int_equal(script.descriptors, 1);
}

static void answers_where_nobody_asked(void **state)
{
    (void)state;
    static const enum behaviour wrong[] = { IN_FRAME, ELSEWHERE };
    for (size_t i = 0; i < 2; i++) {
        struct script script = { .behaviour = wrong[i] };
        struct fake fake = { 0 };
        struct asked asked = { 0 };
        struct memd_error err = { 0 };
        float o[H * D], lse[H];
        fake_open(&fake, daemon_script, &script);
        ask_from(&asked, &fake);
        if (wrong[i] == ELSEWHERE) {
            asked.query.o = o;
            asked.query.lse = lse;
        }
        assert_int_equal(memd_attend(&asked.query, NULL, &err), MEMD_EPROTO);
        assert_true(err.text[0] != '\0');
        memd_close(asked.client);
        fake_close(&fake);
    }
}

/* The daemon hangs up with an attend unanswered: it is repeated when both regions are there. */
static void shared_again_before_repeating(void **state)
{
    (void)state;
    struct script script = { .behaviour = HANGS_UP };
    struct fake fake = { 0 };
    struct asked asked = { 0 };
    fake_open(&fake, daemon_script, &script);
    ask_from(&asked, &fake);
    struct memd_region *gone = NULL, *other = NULL;
    assert_int_equal(memd_share(asked.client, REGION_BYTES, &gone, NULL), 0);
    assert_int_equal(memd_share(asked.client, REGION_BYTES, &other, NULL), 0);
    assert_int_equal(memd_unshare(gone, NULL), 0);
    asked.query.lse = memd_region_data(other);
    struct memd_error err = { 0 };
    int rc = memd_attend(&asked.query, NULL, &err);
    assert_int_equal(rc, MEMD_EPROTO); /* this daemon answers in the frame: it was asked again */
    static const uint64_t wanted[5] = { 1, 2, 3, 1, 3 };
    assert_int_equal(script.number_count, 5);
    assert_memory_equal(script.numbers, wanted, sizeof wanted);
    assert_int_equal(script.numbers_before_attend, 5);
    assert_int_equal(script.descriptors, 5);
    memd_close(asked.client);
    fake_close(&fake);
}

/* A region is shared on one thread, and before that has heard of it another one makes a new
 * connection. */
static void shared_beside_a_reconnect(void **state)
{
    (void)state;
    struct script script = { .behaviour = HANGS_UP, .honest_later = true };
    struct fake fake = { 0 };
    struct asked asked = { 0 };
    struct memd_region *other = NULL;
    fake_open(&fake, daemon_script, &script);
    ask_from(&asked, &fake);
    meanwhile.query = &asked.query;
    struct memd_error err = { 0 };
    if (memd_share(asked.client, REGION_BYTES, &other, &err) < 0) fail_msg("%s", err.text);
    assert_null(meanwhile.query); /* it was asked */
    static const uint64_t wanted[4] = { 1, 2, 1, 2 };
    assert_int_equal(script.number_count, 4);
    assert_memory_equal(script.numbers, wanted, sizeof wanted);
    memd_close(asked.client);
    fake_close(&fake);
}

static void *attend_in_thread(void *arg)
{
    struct asked *asked = arg;
    assert(memd_attend(&asked->query, NULL, NULL) == 0);
    return NULL;
}

/* A region is taken back while a connection is made, for which it was looked up already. */
static void unshared_beside_a_reconnect(void **state)
{
    (void)state;
    sem_t greeting, greet;
    struct script script = { .behaviour = HANGS_UP, .honest_later = true, .greeting = &greeting,
                             .greet = &greet };
    struct fake fake = { 0 };
    struct asked asked = { 0 };
    struct memd_region *gone = NULL;
    pthread_t thread;
    sem_init(&greeting, 0, 0);
    sem_init(&greet, 0, 0);
    fake_open(&fake, daemon_script, &script);
    ask_from(&asked, &fake);
    assert_int_equal(memd_share(asked.client, REGION_BYTES, &gone, NULL), 0);
    assert_int_equal(pthread_create(&thread, NULL, attend_in_thread, &asked), 0);
    sem_wait(&greeting);
    assert_int_equal(memd_unshare(gone, NULL), 0);
    sem_post(&greet);
    pthread_join(thread, NULL);
    assert_int_equal(script.number_count - script.first_of_last, 1);
    assert_int_equal(script.numbers[script.first_of_last], 1);
    memd_close(asked.client);
    fake_close(&fake);
    sem_destroy(&greeting);
    sem_destroy(&greet);
}

/* What the daemon does not take again travels, until it does. */
static void not_taken_again(void **state)
{
    (void)state;
    struct script script = { .behaviour = HANGS_UP, .honest_later = true,
                             .refuses = MEMD_EFULL, .hangs_up_at = 3 };
    struct fake fake = { 0 };
    struct asked asked = { 0 };
    fake_open(&fake, daemon_script, &script);
    ask_from(&asked, &fake);
    float o[H * D], lse[H], q[H * D] = { 1 };
    struct memd_query framed = asked.query;
    struct memd_error err = { 0 };
    framed.q = q;
    framed.o = o;
    framed.lse = lse;
    assert_int_equal(memd_attend(&asked.query, NULL, &err), MEMD_EFULL); /* named it before */
    assert_non_null(strstr(err.text, "no room for it"));
    assert_int_equal(memd_attend(&framed, NULL, NULL), 0);
    asked.query.o[0] = asked.query.lse[0] = 7;
    assert_int_equal(memd_attend(&asked.query, NULL, NULL), 0);
    assert_true(script.q_offset == UINT64_MAX && script.payload_bytes == sizeof q);
    assert_true(script.o_offset == UINT64_MAX && script.lse_offset == UINT64_MAX);
    assert_true(asked.query.o[0] == 0 && asked.query.lse[0] == 0); /* what the daemon answers */
    assert_int_equal(memd_attend(&framed, NULL, NULL), 0); /* the third */
    assert_int_equal(memd_attend(&asked.query, NULL, NULL), 0);
    assert_int_equal(script.q_offset, 0);
    assert_int_equal(script.o_offset, AT_O);
    assert_int_equal(script.number_count, 3);
    assert_int_equal(memd_unshare(asked.region, NULL), 0);
    memd_close(asked.client);
    fake_close(&fake);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(places_instead_of_bytes),
        cmocka_unit_test(answers_where_nobody_asked),
        cmocka_unit_test(shared_again_before_repeating),
        cmocka_unit_test(shared_beside_a_reconnect),
        cmocka_unit_test(unshared_beside_a_reconnect),
        cmocka_unit_test(not_taken_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

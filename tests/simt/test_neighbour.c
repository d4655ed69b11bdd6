/* SPDX-License-Identifier: Apache-2.0 */
/* test_neighbour.c — memory of others over a device that is not there: pinned, imported, read,
 * written, in every order with steps, when it is refused and when the device is lost.
 *
 * The fake device runs copies as late as it may and refuses pointers that it could not reach, so a
 * copy that is not waited for, or comes from memory that is not pinned, shows.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "attention/cuda/accelerator.h"
#include "attention/cuda/accelerator_state.h"
#include "attention/cuda/neighbour.h"
#include "base/error.h"
#include "tests/random.h"
#include "tests/simt/fake_device.h"

/* More than one piece through the staging, and an odd rest. */
enum { BYTES = (9 << 20) + 4096 + 12, OTHER_BYTES = 8192 };

static struct accelerator *open_fake(void)
{
    struct accelerator *accelerator = NULL;
    struct error err = { 0 };
    struct accelerator_config config = { .ordinal = -1,
                                         .window_bytes = 1 << 20,
                                         .travel_bytes = 1 << 20,
                                         .sink_tokens = 4,
                                         .window_tokens = 64 };
    fake_device_lose(0);
    fake_device_limit(UINT64_C(1) << 30);
    if (accelerator_open(&fake_device_table, &config, &accelerator, &err) < 0)
        fail_msg("%s", err.text);
    return accelerator;
}

/* What another process allocated: here a memfd, which is the memory of the fake device. */
struct other {
    int fd;
    unsigned char *at;
};

static struct other other_new(size_t bytes)
{
    struct other other = { .fd = memfd_create("other", MFD_CLOEXEC) };
    assert_true(other.fd >= 0 && ftruncate(other.fd, (off_t)bytes) == 0);
    other.at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, other.fd, 0);
    assert_true(other.at != MAP_FAILED);
    return other;
}

static void other_free(struct other *other, size_t bytes)
{
    munmap(other->at, bytes);
    close(other->fd);
}

static void fill(unsigned char *bytes, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++) bytes[i] = (unsigned char)random_below(&seed, 256);
}

static void *import(struct accelerator *accelerator, const struct other *other, size_t bytes)
{
    struct error err = { 0 };
    void *memory = NULL;
    struct device_export from = { .descriptor = other->fd, .bytes = bytes };
    if (neighbour_import(accelerator, &from, &memory, &err) < 0) fail_msg("%s", err.text);
    return memory;
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake();
    struct other other = other_new(BYTES);
    fill(other.at, BYTES, 1);
    unsigned char *memory = import(accelerator, &other, BYTES);
    unsigned char *copy = malloc(BYTES);
    assert_non_null(copy);
    assert_int_equal(neighbour_read(accelerator, memory, BYTES, copy, NULL), 0);
    assert_memory_equal(copy, other.at, BYTES);
    assert_int_equal(neighbour_read(accelerator, memory + 4096, 12, copy, NULL), 0);
    assert_memory_equal(copy, other.at + 4096, 12);

    fill(copy, BYTES, 2);
    assert_int_equal(neighbour_write(accelerator, copy, BYTES - 64, memory + 64, NULL), 0);
    assert_memory_equal(other.at + 64, copy, BYTES - 64);
    fill(copy, 64, 1);
    assert_memory_equal(other.at, copy, 64); /* what was not written is as it was */

    /* Its exporter may go: the memory stays. */
    other_free(&other, BYTES);
    assert_int_equal(neighbour_read(accelerator, memory, 64, copy + 64, NULL), 0);
    assert_memory_equal(copy + 64, copy, 64);
    assert_int_equal(fake_device_counts().imports, 1);
    neighbour_release(accelerator, memory);
    assert_int_equal(fake_device_counts().imports, 0);
    free(copy);
    accelerator_close(accelerator);
}

static void what_cannot_be_imported(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake();
    struct other other = other_new(OTHER_BYTES);
    void *memory = NULL;
    struct error err = { 0 };
    struct device_export from = { .descriptor = other.fd, .bytes = OTHER_BYTES + 1 };
    assert_int_equal(neighbour_import(accelerator, &from, &memory, &err), MEMD_EINVAL);
    assert_true(err.text[0] != '\0');
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    from = (struct device_export){ .descriptor = ends[0], .bytes = 1 };
    assert_int_equal(neighbour_import(accelerator, &from, &memory, &err), MEMD_EINVAL);
    from = (struct device_export){ .kind = DEVICE_EXPORT_HANDLE, .bytes = 1 };
    assert_int_equal(neighbour_import(accelerator, &from, &memory, &err), MEMD_EINVAL);
    assert_null(memory);
    snprintf((char *)from.handle, sizeof from.handle, "%d %d", (int)getpid(), other.fd);
    assert_int_equal(neighbour_import(accelerator, &from, &memory, &err), 0);
    other.at[0] = 77;
    unsigned char byte = 0;
    assert_int_equal(neighbour_read(accelerator, memory, 1, &byte, NULL), 0);
    assert_int_equal(byte, 77);
    neighbour_release(accelerator, memory);
    close(ends[0]);
    close(ends[1]);
    other_free(&other, OTHER_BYTES);
    accelerator_close(accelerator);
}

/* Until it is pinned the device refuses to copy from it; from then on it needs no staging. */
static void pinned_memory(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake();
    struct other other = other_new(OTHER_BYTES);
    fill(other.at, OTHER_BYTES, 3);
    assert_int_equal(neighbour_pin(accelerator, other.at, OTHER_BYTES, NULL), 0);
    assert_int_equal(fake_device_counts().pinned_bytes, OTHER_BYTES);
    assert_int_equal(neighbour_pin(accelerator, other.at + 4096, 4096, NULL), MEMD_EINVAL);

    const struct device_table *table = accelerator->table;
    void *memory = NULL;
    struct error err = { 0 };
    unsigned char copy[64];
    assert_int_equal(table->alloc(accelerator->device, OTHER_BYTES, &memory, &err), 0);
    assert_int_equal(
        table->copy(accelerator->device, DEVICE_TRANSFER, memory, other.at, OTHER_BYTES), 0);
    assert_int_equal(table->finish(accelerator->device, DEVICE_TRANSFER, &err), 0);
    assert_int_equal(neighbour_read(accelerator, memory, sizeof copy, copy, NULL), 0);
    assert_memory_equal(copy, other.at, sizeof copy);

    neighbour_unpin(accelerator, other.at);
    assert_int_equal(fake_device_counts().pinned_bytes, 0);
    assert_int_equal(table->copy(accelerator->device, DEVICE_TRANSFER, memory, other.at, 64), 0);
    assert_int_equal(table->finish(accelerator->device, DEVICE_TRANSFER, &err), MEMD_EDEVICE);
    table->free(accelerator->device, memory);
    other_free(&other, OTHER_BYTES);
    accelerator_close(accelerator);
}

static void a_device_that_is_lost(void **state)
{
    (void)state;
    struct accelerator *accelerator = open_fake();
    struct other other = other_new(OTHER_BYTES);
    void *memory = import(accelerator, &other, OTHER_BYTES), *more = NULL;
    assert_int_equal(neighbour_pin(accelerator, other.at, OTHER_BYTES, NULL), 0);
    assert_true(neighbour_is_offered(accelerator));
    accelerator_switch(accelerator, false);
    assert_false(neighbour_is_offered(accelerator)); /* but what is imported works on */
    unsigned char byte = 0;
    struct error err = { 0 };
    other.at[5] = 9;
    assert_int_equal(neighbour_read(accelerator, (unsigned char *)memory + 5, 1, &byte, &err), 0);
    assert_int_equal(byte, 9);
    accelerator_switch(accelerator, true);

    fake_device_lose(1);
    assert_int_equal(neighbour_read(accelerator, memory, 1, &byte, &err), MEMD_EDEVICE);
    assert_non_null(strstr(err.text, "fell off the bus"));
    assert_false(neighbour_is_offered(accelerator));
    assert_int_equal(neighbour_write(accelerator, &byte, 1, memory, &err), MEMD_EDEVICE);
    struct device_export from = { .descriptor = other.fd, .bytes = 1 };
    assert_int_equal(neighbour_import(accelerator, &from, &more, &err), MEMD_EDEVICE);
    assert_int_equal(neighbour_pin(accelerator, other.at, 4096, &err), MEMD_EDEVICE);
    neighbour_unpin(accelerator, other.at);
    neighbour_release(accelerator, memory);
    other_free(&other, OTHER_BYTES);
    accelerator_close(accelerator);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(what_cannot_be_imported),
        cmocka_unit_test(pinned_memory),
        cmocka_unit_test(a_device_that_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

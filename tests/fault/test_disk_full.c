/* SPDX-License-Identifier: Apache-2.0 */
/* test_disk_full.c — a real file system of 12 MiB, filled in every sync mode: appends end in
 * MEMD_EFULL, nothing that was committed is lost, and truncate, which frees pages only for later
 * transactions, brings service back.
 *
 * Once memd fills it and keeps its margin for deletes. Once the last page is taken behind its back
 * (statvfs tells it of room that is not there, as it does where another process writes at the same
 * time): then LMDB itself runs out in the middle of a commit, and truncate may need the first
 * bytes that the operator frees, but not more.
 *
 * The file system is a tmpfs in a mount namespace of this process; where that is not allowed the
 * test is skipped.
 */
#include "tests/unit/store_fixture.h"

#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

static bool disk_lies;
static char disk[] = "/tmp/memd-disk-XXXXXX";

/* The linker puts these two before and after the C library's. */
int __real_statvfs(const char *path, struct statvfs *space);
int __wrap_statvfs(const char *path, struct statvfs *space);

int __wrap_statvfs(const char *path, struct statvfs *space)
{
    int rc = __real_statvfs(path, space);
    if (disk_lies) space->f_bavail = space->f_blocks;
    return rc;
}

static bool make_small_disk(void)
{
    if (unshare(CLONE_NEWNS) != 0) return false;
    if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0) return false;
    return mount("tmpfs", disk, "tmpfs", 0, "size=12m") == 0;
}

static int cut_in_half(struct context *context)
{
    struct error err = { 0 };
    int rc = context_truncate(context, context_tokens(context) / 2 + 3, &err);
    if (!disk_lies || rc != MEMD_EFULL) return rc;
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=13m"), 0);
    return context_truncate(context, context_tokens(context) / 2 + 3, &err);
}

/* Append to the layers in turn until it fails; the code. */
static int append_until(struct fixture *fx, struct context *context, int times)
{
    struct error err = { 0 };
    int rc = 1;
    for (int i = 0; rc == 1 && i < times; i++) {
        struct progress progress;
        uint32_t layer = (uint32_t)i % 2;
        struct place place = { layer, context_layer_tokens(context, layer) };
        ASSERT_OK(fixture_append_layer(fx, context, place, 1000, &progress, &err), err);
        rc = fixture_reach(fx, context, progress.sequence, DURABLE_COMMITTED, &err);
    }
    return rc;
}

static void check_full_disk(struct fixture *fx)
{
    struct error err = { 0 };
    struct context *context = fixture_context(fx, "book");
    assert_int_equal(append_until(fx, context, 1000), MEMD_EFULL);
    struct statvfs space;
    assert_int_equal(__real_statvfs(disk, &space), 0);
    if (!disk_lies) assert_true(space.f_bavail * space.f_frsize >= 512 << 10);
    uint64_t tokens = context_tokens(context);
    assert_true(tokens > 20000);
    fixture_expect(fx, context, 0, 0, tokens);
    assert_int_equal(cut_in_half(context), 0);
    assert_int_equal(context_tokens(context), tokens / 2 + 3);
    assert_int_equal(append_until(fx, context, 20), 1);
    tokens = context_tokens(context);
    struct walk_args walk = { .context_id = 0 };
    struct verify_step step;
    ASSERT_OK(catalog_verify(fx->catalog, &walk, &fx->arena, &step, &err), err);
    if (step.finding_count > 0) fail_msg("verify: %s", step.findings[0]);
    fixture_restart(fx);
    context = fixture_context(fx, "book");
    assert_int_equal(context_tokens(context), tokens);
    fixture_expect(fx, context, 1, 0, tokens);
}

static void fill_disk(enum sync_mode mode)
{
    struct fixture fx;
    fixture_begin(&fx);
    arena_reset(&fx.arena);
    catalog_close(fx.catalog);
    fixture_remove(fx.path);
    snprintf(fx.path, sizeof fx.path, "%s/data", disk);
    fx.config.path = fx.path;
    fx.config.sync = mode;
    fx.config.sync_interval_ms = 5;
    fixture_open(&fx);
    check_full_disk(&fx);
    fixture_end(&fx);
    assert_int_equal(mount("tmpfs", disk, "tmpfs", MS_REMOUNT, "size=12m"), 0);
}

static const enum sync_mode modes[] = { SYNC_INTERVAL, SYNC_ALWAYS, SYNC_NEVER };

static void test_disk_full(void **state)
{
    (void)state;
    disk_lies = false;
    for (size_t i = 0; i < 3; i++) fill_disk(modes[i]);
}

static void test_last_page_taken(void **state)
{
    (void)state;
    disk_lies = true;
    for (size_t i = 0; i < 3; i++) fill_disk(modes[i]);
}

int main(void)
{
    if (mkdtemp(disk) == NULL) return 1;
    int rc = 77;
    if (make_small_disk()) {
        const struct CMUnitTest tests[] = { cmocka_unit_test(test_disk_full),
                                            cmocka_unit_test(test_last_page_taken) };
        rc = cmocka_run_group_tests(tests, NULL, NULL);
        umount(disk);
    }
    rmdir(disk);
    return rc;
}

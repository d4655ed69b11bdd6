/* SPDX-License-Identifier: Apache-2.0 */
/* test_damage.c — what a catalog makes of damaged pages (test_pages.c has all kinds of damage, and
 * the store alone): contexts are opened, read, appended to, dropped and verified in a child, over
 * one page of the trees after the other. What a fetch returns is what was appended, or an error.
 */
#include "tests/unit/store_fixture.h"

#include "memory/store_pages.h"
#include "tests/random.h"
#include "tests/unit/child.h"
#include "tests/unit/image.h"

enum {
    CONTEXTS = 6,
    TOKENS = 2100,
    SECONDS_MAX = 30,
#ifdef __SANITIZE_THREAD__
    CASES_MAX = 12 /* enough of the threads, many times slower */
#else
    CASES_MAX = 40
#endif
};

struct damaged {
    struct fixture fx;
    struct image image;
};

/* Long, so that the table of names has a few pages. */
static void name_of(size_t i, char ret_name[200])
{
    snprintf(ret_name, 200, "%0*zu", 190, i);
}

static void begin(struct damaged *damaged)
{
    struct fixture *fx = &damaged->fx;
    fixture_begin(fx);
    fx->model.layers = 6;
    char name[200];
    for (size_t i = 0; i < 60; i++) {
        name_of(i, name);
        struct context *context = fixture_context(fx, name);
        if (i < CONTEXTS) fixture_append(fx, context, 0, TOKENS);
        arena_reset(&fx->arena);
    }
    fixture_close(fx);
    image_init(&damaged->image, fx->path);
    image_read(&damaged->image);
}

static void end(struct damaged *damaged)
{
    arena_fini(&damaged->fx.arena);
    fixture_remove(damaged->fx.path);
    image_fini(&damaged->image);
}

/* To the end, or to an error, which must be one. The last finding. */
static int verify_all(struct fixture *fx, size_t *ret_findings, char ret_text[512])
{
    struct walk_args args = { .context_id = 0 };
    struct error err = { 0 };
    unsigned char cursor[LIMIT_CURSOR_BYTES];
    *ret_findings = 0;
    do {
        struct verify_step step = { 0 };
        int rc = catalog_verify(fx->catalog, &args, &fx->arena, &step, &err);
        if (rc < 0) return rc;
        for (size_t i = 0; i < step.finding_count; i++) {
            if (strstr(step.findings[i], "is damaged") != NULL)
                snprintf(ret_text, 512, "%s", step.findings[i]);
        }
        *ret_findings += step.finding_count;
        if (step.cursor_bytes > 0) memcpy(cursor, step.cursor, step.cursor_bytes);
        args.cursor = cursor;
        args.cursor_bytes = step.cursor_bytes;
    } while (args.cursor_bytes > 0);
    return 0;
}

/* 0: all rows are as appended, or there is an error. */
static int read_rows(struct fixture *fx, struct context *context, uint32_t layer)
{
    enum { COUNT = 32, ROW = 2 * 16 };
    struct error err = { 0 };
    uint16_t k[COUNT * ROW], v[COUNT * ROW];
    uint32_t ids[COUNT];
    uint64_t wanted[COUNT];
    struct fetch_out out = { .k = k, .v = v, .token_ids = ids };
    for (size_t i = 0; i < COUNT; i++) wanted[i] = i * (TOKENS / COUNT);
    if (context_layer_tokens(context, layer) < TOKENS) return 0;
    if (context_fetch(context, layer, wanted, COUNT, &out, &err) < 0) return 0;
    int wrong = 0;
    for (size_t i = 0; i < COUNT; i++) {
        void *row = fixture_rows(fx, layer, wanted[i], 1, 0);
        wrong += memcmp(row, k + i * ROW, sizeof *k * ROW) != 0;
        free(row);
    }
    return wrong;
}

/* How many contexts can be read to the end. */
static int use_contexts(struct fixture *fx, size_t *ret_whole)
{
    struct error err = { 0 };
    char name[200];
    *ret_whole = 0;
    for (size_t i = 0; i < CONTEXTS + 1; i++) {
        struct context *context = NULL;
        bool created = false;
        name_of(i, name);
        struct open_args args = { .name = name, .model = &fx->model, .method = "", .create = true };
        int rc = catalog_open_context(fx->catalog, &args, &fx->arena, &context, &created, &err);
        if (rc < 0) continue;
        struct answer answer;
        struct progress progress = { 0 };
        uint64_t tokens = context_layer_tokens(context, 1);
        size_t answered = 0;
        for (uint32_t layer = 0; layer < fx->model.layers; layer++) {
            if (read_rows(fx, context, layer) != 0) return 1;
            answered += fixture_attend(fx, context, layer, UINT64_MAX, &answer, &err) == 0;
        }
        *ret_whole += tokens >= TOKENS && answered == fx->model.layers;
        fixture_append_layer(fx, context, (struct place){ 1, tokens }, 100, &progress, &err);
        arena_reset(&fx->arena);
    }
    return 0;
}

static int use(struct fixture *fx)
{
    struct error err = { 0 };
    char text[512];
    size_t findings = 0, whole = 0;
    uint64_t bytes = 0;
    if (catalog_open(&fx->config, &fx->catalog, &err) < 0) return 0;
    verify_all(fx, &findings, text);
    struct list_args args = { .prefix = "", .after = "" };
    struct list_page page;
    catalog_list(fx->catalog, &args, &fx->arena, &page, &err);
    int wrong = use_contexts(fx, &whole);
    catalog_drop(fx->catalog, 2, &bytes, &err);
    catalog_drop(fx->catalog, 5, &bytes, &err);
    catalog_sync(fx->catalog, &err);
    fixture_close(fx);
    return wrong;
}

static void zeros(struct damaged *damaged, uint64_t *seed, unsigned char *page)
{
    (void)damaged;
    (void)seed;
    memset(page, 0, PAGE);
}

static void offsets(struct damaged *damaged, uint64_t *seed, unsigned char *page)
{
    (void)damaged;
    page[PAGE_NODES + 1 + 2 * random_below(seed, page_count(page))] ^= 0xA0;
}

static void another(struct damaged *damaged, uint64_t *seed, unsigned char *page)
{
    uint64_t number = page_u64(page);
    memcpy(page, image_page(&damaged->image, 2 + random_below(seed, damaged->image.pages - 2)),
           PAGE);
    memcpy(page, &number, sizeof number);
}

/* CASES_MAX of `all`, evenly; all where there are fewer. How many there are hangs on when the
 * builder came by. */
static bool chosen(size_t i, size_t all)
{
    return all <= CASES_MAX || i * CASES_MAX / all != (i + 1) * CASES_MAX / all;
}

static int damage_pages(void *arg, struct child_case *now)
{
    static const struct {
        const char *name;
        void (*apply)(struct damaged *, uint64_t *, unsigned char *);
    } kinds[] = { { "zeros", zeros }, { "offsets", offsets }, { "another page", another } };
    struct damaged *damaged = arg;
    uint64_t seed = random_seed();
    size_t seen = 0, all = 0;
    for (size_t i = 2; i < damaged->image.pages; i++) all += image_in_tree(&damaged->image, i);
    for (size_t i = 2; i < damaged->image.pages; i++) {
        unsigned char page[PAGE];
        if (!image_in_tree(&damaged->image, i) || !chosen(seen++, all)) continue;
        size_t kind = now->count % 3;
        child_begins(now, kinds[kind].name, i, SECONDS_MAX);
        memcpy(page, image_page(&damaged->image, i), PAGE);
        kinds[kind].apply(damaged, &seed, page);
        image_write(&damaged->image, i, page);
        int wrong = use(&damaged->fx);
        if (wrong != 0) return wrong;
    }
    return 0;
}

static void test_every_page(void **state)
{
    (void)state;
    struct damaged damaged;
    begin(&damaged);
    size_t cases = child_survives(damage_pages, &damaged);
    print_message("%zu damages\n", cases);
    assert_true(cases > CASES_MAX / 2);
    end(&damaged);
}

/* A leaf of values of segments (docs/FORMAT.md). */
static bool has_segments(const struct damaged *damaged, size_t i)
{
    const unsigned char *page = image_page(&damaged->image, i);
    return image_in_tree(&damaged->image, i) && page_u16(page + PAGE_FLAGS) == PAGE_IS_LEAF &&
           page_node_key(page_node(page, 0)).bytes == 11;
}

/* Others are served; verify names table and page, and looks at what is behind them. */
static void test_rest_is_served(void **state)
{
    (void)state;
    struct damaged damaged;
    begin(&damaged);
    struct fixture *fx = &damaged.fx;
    size_t leaves = 0;
    for (size_t i = 2; i < damaged.image.pages && leaves < 4; i++) {
        size_t findings = 0, whole = 0, sound = 0;
        unsigned char page[PAGE] = { 0 };
        char text[512] = "", wanted[64];
        struct catalog_stats stats;
        if (!has_segments(&damaged, i)) continue;
        image_write(&damaged.image, i, page);
        fixture_open(fx);
        catalog_get_stats(fx->catalog, &stats);
        if (stats.damaged_pages == 0) { /* of an old state */
            fixture_close(fx);
            continue;
        }
        assert_int_equal(stats.damaged_pages, 1);
        assert_int_equal(verify_all(fx, &findings, text), 0);
        snprintf(wanted, sizeof wanted, "segments: page %zu of data.mdb is damaged: ", i);
        if (strncmp(text, wanted, strlen(wanted)) != 0) fail_msg("%s", text);
        assert_int_equal(use_contexts(fx, &whole), 0);
        assert_in_range(whole, 1, CONTEXTS - 1);
        leaves++;
        fixture_close(fx);
        image_write(&damaged.image, i, image_page(&damaged.image, i));
        fixture_open(fx);
        assert_int_equal(verify_all(fx, &findings, text), 0);
        assert_int_equal(findings, 0);
        assert_int_equal(use_contexts(fx, &sound), 0);
        assert_int_equal(sound, CONTEXTS);
        fixture_close(fx);
    }
    assert_true(leaves > 1);
    end(&damaged);
}

/* More than can be listed: verify says so, and goes on with the next table. */
static void test_very_many(void **state)
{
    (void)state;
    struct damaged damaged;
    begin(&damaged);
    struct fixture *fx = &damaged.fx;
    size_t findings = 0;
    char text[512] = "";
    struct catalog_stats stats;
    for (size_t i = 2; i < damaged.image.pages; i++) {
        unsigned char *page = damaged.image.data + i * PAGE;
        for (size_t at = 0; has_segments(&damaged, i) && at < page_count(page); at++) {
            unsigned char *node = page + (page_node(page, at) - page);
            bool paged = page_u16(node + PAGE_NODE_FLAGS) == PAGE_HAS_PAGES;
            if (paged) node[PAGE_NODE_KEY + 11 + 4] ^= 1; /* of the number of its first page */
        }
    }
    image_write(&damaged.image, 0, image_page(&damaged.image, 0));
    fixture_open(fx);
    catalog_get_stats(fx->catalog, &stats);
    assert_true(stats.damaged_pages > PAGES_LISTED_MAX);
    assert_int_equal(verify_all(fx, &findings, text), 0);
    assert_true(findings > PAGES_LISTED_MAX);
    fixture_close(fx);
    end(&damaged);
}

static size_t root_of_free_list(const struct damaged *damaged)
{
    const unsigned char *meta = image_page(&damaged->image, image_newest_meta(&damaged->image));
    return (size_t)page_u64(meta + PAGE_META_FREE + PAGE_TREE_ROOT);
}

/* Everything is served; the list is said to be empty now, and is sound at the next start. */
static void test_free_list(void **state)
{
    (void)state;
    struct damaged damaged;
    begin(&damaged);
    struct fixture *fx = &damaged.fx;
    size_t findings = 0, whole = 0, root = root_of_free_list(&damaged);
    unsigned char page[PAGE] = { 0 };
    char text[512] = "", wanted[64];
    struct catalog_stats stats;
    assert_in_range(root, 2, damaged.image.pages - 1);
    image_write(&damaged.image, root, page);
    fixture_open(fx);
    assert_int_equal(verify_all(fx, &findings, text), 0);
    snprintf(wanted, sizeof wanted, "free pages: page %zu of data.mdb is damaged: ", root);
    if (strncmp(text, wanted, strlen(wanted)) != 0) fail_msg("%s", text);
    assert_int_equal(use_contexts(fx, &whole), 0);
    assert_int_equal(whole, CONTEXTS);
    fixture_restart(fx);
    catalog_get_stats(fx->catalog, &stats);
    assert_int_equal(stats.damaged_pages, 0);
    assert_int_equal(verify_all(fx, &findings, text), 0);
    assert_int_equal(findings, 0);
    fixture_close(fx);
    end(&damaged);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(test_rest_is_served),
                                        cmocka_unit_test(test_free_list),
                                        cmocka_unit_test(test_very_many),
                                        cmocka_unit_test(test_every_page) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* test_pages.c — a store whose pages are damaged, one at a time, in many ways: every page of its
 * trees, every byte of its meta pages. A child opens it, reads, walks, writes and deletes; whatever
 * that gives, it goes on, in time, and a value that is read is the one that was written.
 */
#include "tests/unit/pages_fixture.h"

enum { SECONDS_MAX = 20 };

/* ---- what a child does with it; 1: a value was another's, 2: a walk found no end ---- */

static int read_all(struct store *store)
{
    static const enum store_table tables[] = { STORE_SEGMENTS, STORE_CHAINS };
    struct error err = { 0 };
    struct slice value;
    unsigned char key[512];
    for (size_t i = 0; i < 2 * KEYS; i++) { /* a transaction each: the next key may be whole */
        struct store_txn txn = { 0 };
        if (store_begin(store, false, &txn, &err) < 0) return 0;
        bool found = store_get(&txn, tables[i % 2], key_of(i / 2, key), &value);
        bool wrong = found && !is_value_of(i / 2, value);
        store_abort(&txn);
        if (wrong) return 1;
    }
    return 0;
}

static int walk_all(struct store *store)
{
    struct error err = { 0 };
    for (int table = 0; table < STORE_TABLES; table++) {
        struct store_txn txn = { 0 };
        struct store_cursor cursor;
        size_t count = 0;
        if (store_begin(store, false, &txn, &err) < 0) return 0;
        bool more = store_seek(&txn, (enum store_table)table, (struct slice){ NULL, 0 }, &cursor);
        for (; more && count <= KEYS; count++) more = store_next(&cursor);
        store_cursor_close(&cursor);
        store_abort(&txn);
        if (count > KEYS) return 2;
    }
    struct store_free space;
    struct store_ask ask = { .bytes = UINT64_MAX / 4,
                             .run_bytes = UINT64_MAX / 4,
                             .value_bytes = 100 }; /* the whole list */
    store_find_free(store, &ask, &space);
    return 0;
}

static void change(struct store *store, unsigned step)
{
    struct error err = { 0 };
    for (size_t first = 0; first < KEYS; first += 50) {
        struct store_txn txn = { 0 };
        if (store_begin(store, true, &txn, &err) < 0) return;
        for (size_t i = first; i < first + 50; i++) {
            if (i % 3 == step % 3) delete (&txn, STORE_SEGMENTS, i);
            if (i % 3 == (step + 1) % 3) put(&txn, STORE_SEGMENTS, i, 3);
            if (i % 16 == 0) delete (&txn, STORE_CHAINS, i);
        }
        store_commit(&txn, &err);
    }
}

static int use(const struct place *place)
{
    struct store *store = NULL;
    struct error err = { 0 };
    if (open_place(place, &store, &err) < 0) return 0;
    int rc = read_all(store);
    if (rc == 0) rc = walk_all(store);
    for (unsigned step = 0; rc == 0 && step < 3; step++) {
        change(store, step);
        rc = walk_all(store);
    }
    if (rc == 0) rc = read_all(store);
    store_close(store);
    return rc;
}

/* What it wrote is as good as what it found. */
static int use_twice(const struct place *place)
{
    struct store *store = NULL;
    struct error err = { 0 };
    int rc = use(place);
    if (rc != 0 || open_place(place, &store, &err) < 0) return rc;
    rc = walk_all(store);
    store_close(store);
    return rc;
}

/* ---- kinds of damage ---- */

static void set16(unsigned char *at, unsigned value)
{
    at[0] = (unsigned char)value;
    at[1] = (unsigned char)(value >> 8);
}

struct kind {
    const char *name;
    void (*apply)(struct place *place, unsigned char *page);
};

static unsigned char *some_node(struct place *place, unsigned char *page)
{
    return page + page_u16(page + PAGE_NODES + 2 * random_below(&place->seed, page_count(page)));
}

static void zeros(struct place *place, unsigned char *page)
{
    (void)place;
    memset(page, 0, PAGE);
}

static void noise(struct place *place, unsigned char *page)
{
    for (size_t i = 0; i < PAGE; i++) page[i] = (unsigned char)random_u64(&place->seed);
}

static void half(struct place *place, unsigned char *page)
{
    (void)place;
    memset(page + PAGE / 2, 0, PAGE / 2);
}

static void another(struct place *place, unsigned char *page)
{
    size_t from = page_u64(page) == 0 ? 1 : 0;
    do from = random_below(&place->seed, place->image.pages);
    while (!image_in_tree(&place->image, from) || from == page_u64(page));
    memcpy(page, image_page(&place->image, from), PAGE);
}

static void another_renumbered(struct place *place, unsigned char *page)
{
    uint64_t number = page_u64(page);
    another(place, page);
    memcpy(page, &number, sizeof number);
}

static void number(struct place *place, unsigned char *page)
{
    page[random_below(&place->seed, 8)] ^= (unsigned char)(1u << random_below(&place->seed, 8));
}

static void flags(struct place *place, unsigned char *page)
{
    set16(page + PAGE_FLAGS, page_u16(page + PAGE_FLAGS) ^ 1u << random_below(&place->seed, 16));
}

static void other_kind(struct place *place, unsigned char *page)
{
    (void)place;
    set16(page + PAGE_FLAGS, page_u16(page + PAGE_FLAGS) ^ 3u);
}

static void lower(struct place *place, unsigned char *page)
{
    unsigned value = random_below(&place->seed, 2) == 0
                         ? page_u16(page + PAGE_LOWER) ^ 1u << random_below(&place->seed, 16)
                         : PAGE_NODES;
    set16(page + PAGE_LOWER, value);
}

static void upper(struct place *place, unsigned char *page)
{
    set16(page + PAGE_UPPER, page_u16(page + PAGE_UPPER) ^ 1u << random_below(&place->seed, 16));
}

static void offset(struct place *place, unsigned char *page)
{
    unsigned char *at = page + PAGE_NODES + 2 * random_below(&place->seed, page_count(page));
    set16(at, page_u16(at) ^ 1u << random_below(&place->seed, 16));
}

static void node_head(struct place *place, unsigned char *page)
{
    some_node(place, page)[random_below(&place->seed, PAGE_NODE_KEY)] ^=
        (unsigned char)(1u << random_below(&place->seed, 8));
}

static void node_key(struct place *place, unsigned char *page)
{
    unsigned char *node = some_node(place, page);
    if (page_node_key(node).bytes > 0) node[PAGE_NODE_KEY] ^= 0x80; /* a branch's first has none */
}

/* To another page that exists: the root, itself, a neighbour, a value. */
static void leads_elsewhere(struct place *place, unsigned char *page)
{
    unsigned char *node = some_node(place, page);
    uint64_t to = random_below(&place->seed, place->image.pages);
    if (page_u16(page + PAGE_FLAGS) == PAGE_IS_BRANCH)
        memcpy(node, &to, 6);
    else if (page_u16(node + PAGE_NODE_FLAGS) == PAGE_HAS_PAGES)
        memcpy(node + PAGE_NODE_KEY + page_u16(node + PAGE_NODE_KEY_BYTES), &to, sizeof to);
}

static const struct kind kinds[] = {
    { "zeros", zeros },
    { "noise", noise },
    { "half", half },
    { "another page", another },
    { "another page by its number", another_renumbered },
    { "number", number },
    { "flags", flags },
    { "leaf for branch", other_kind },
    { "lower", lower },
    { "upper", upper },
    { "offset", offset },
    { "head of a node", node_head },
    { "key of a node", node_key },
    { "number of a child", leads_elsewhere },
};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static bool is_branch(const struct place *place, size_t i)
{
    return page_u16(image_page(&place->image, i) + PAGE_FLAGS) == PAGE_IS_BRANCH;
}

static int damage_pages(void *arg, struct child_case *now)
{
    struct place *place = arg;
    int rc = 0;
    for (size_t i = 2; rc == 0 && i < place->image.pages; i++) {
        if (!image_in_tree(&place->image, i)) continue;
        for (size_t j = 0; rc == 0 && j < KINDS; j++) {
            unsigned char page[PAGE];
            if (!is_branch(place, i) && j != i % KINDS) continue;
            child_begins(now, kinds[j].name, i, SECONDS_MAX);
            memcpy(page, image_page(&place->image, i), PAGE);
            kinds[j].apply(place, page);
            image_write(&place->image, i, page);
            rc = use_twice(place);
        }
    }
    return rc;
}

static void test_every_page(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    size_t branches = 0;
    for (size_t i = 2; i < place.image.pages; i++)
        branches += image_in_tree(&place.image, i) && is_branch(&place, i);
    assert_true(branches > 10);
    print_message("%zu damages\n", child_survives(damage_pages, &place));
    remove_place(&place);
}

/* One bit of each byte, of either in turn. */
static int damage_meta_pages(void *arg, struct child_case *now)
{
    struct place *place = arg;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < PAGE_META_BYTES; i++) {
        unsigned char page[PAGE];
        size_t which = i % 2;
        child_begins(now, "bit of a meta page", which, SECONDS_MAX);
        memcpy(page, image_page(&place->image, which), PAGE);
        page[i] ^= (unsigned char)(1u << random_below(&place->seed, 8));
        image_write(&place->image, which, page);
        rc = use_twice(place);
    }
    return rc;
}

static void test_meta_pages(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    assert_int_equal(child_survives(damage_meta_pages, &place), PAGE_META_BYTES);
    remove_place(&place);
}

/* The next commit would write over what is behind: nothing is touched. */
static void test_last_page(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    struct store *store = NULL;
    struct error err = { 0 };
    unsigned char page[PAGE], after[PAGE];
    size_t newest = image_newest_meta(&place.image);
    memcpy(page, image_page(&place.image, newest), PAGE);
    uint64_t last = page_u64(page + PAGE_META_LAST_PAGE) / 2;
    memcpy(page + PAGE_META_LAST_PAGE, &last, sizeof last);
    image_write(&place.image, newest, page);
    assert_int_equal(open_place(&place, &store, &err), MEMD_ECORRUPT);
    assert_non_null(strstr(err.text, "last page is too small"));
    int fd = open(place.image.file, O_RDONLY);
    for (size_t i = 0; i < place.image.pages; i++) {
        assert_int_equal(pread(fd, after, PAGE, (off_t)(i * PAGE)), PAGE);
        assert_memory_equal(after, i == newest ? page : image_page(&place.image, i), PAGE);
    }
    close(fd);
    remove_place(&place);
}

static int truncate_file(void *arg, struct child_case *now)
{
    struct place *place = arg;
    int rc = 0;
    for (size_t pages = 0; rc == 0 && pages < place->image.pages;
         pages += 1 + place->image.pages / 20) {
        child_begins(now, "truncated", pages, SECONDS_MAX);
        image_write(&place->image, 0, place->image.data);
        assert_int_equal(truncate(place->image.file, (off_t)(pages * PAGE + pages % 3 * 100)), 0);
        rc = use_twice(place);
    }
    return rc;
}

/* The file ends too early. */
static void test_truncated(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    assert_true(child_survives(truncate_file, &place) >= 20);
    remove_place(&place);
}

static void test_sound(void **state)
{
    (void)state;
    struct place place;
    make_place(&place);
    for (size_t round = 0; round < 12; round++) {
        struct store *store = open_sound(&place);
        struct error err = { 0 };
        for (size_t turn = 0; turn < 4; turn++) {
            struct store_txn txn;
            assert_int_equal(store_begin(store, true, &txn, &err), 0);
            for (size_t i = 0; i < KEYS; i++) {
                enum store_table table = (enum store_table)random_below(&place.seed, 3);
                size_t at = random_below(&place.seed, KEYS);
                if (random_below(&place.seed, 5) < (round % 3 == 2 ? 4 : 2))
                    delete (&txn, table, at);
                else
                    put(&txn, table, at, (unsigned)turn);
            }
            if (store_commit(&txn, &err) < 0) fail_msg("%s", err.text);
        }
        store_close(store);
    }
    store_close(open_sound(&place));
    remove_place(&place);
}

/* What is sound again is let in again, with everything under it. */
static void test_mended(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    size_t leaves = 0;
    for (size_t i = 2; i < place.image.pages && leaves < 20; i++) {
        unsigned char page[PAGE] = { 0 };
        struct store *store = NULL;
        struct error err = { 0 };
        if (!image_in_tree(&place.image, i)) continue;
        image_write(&place.image, i, page);
        if (open_place(&place, &store, &err) < 0) continue; /* it leads to all tables */
        const struct pages_report *report = store_damage(store);
        bool listed = report->total == 1 && report->list[0].page == i;
        bool of_table = listed && report->list[0].table[0] != 0;
        if (report->total > 0) assert_true(listed); /* 0: of an old state */
        store_close(store);
        if (!of_table) continue; /* the list of free pages is not mended */
        int fd = open(place.image.file, O_WRONLY);
        assert_int_equal(pwrite(fd, image_page(&place.image, i), PAGE, (off_t)(i * PAGE)), PAGE);
        close(fd);
        store = open_sound(&place);
        for (size_t at = 0; at < KEYS; at++) {
            struct store_txn txn = { 0 };
            unsigned char key[512];
            struct slice value;
            assert_int_equal(store_begin(store, false, &txn, &err), 0);
            bool found = store_get(&txn, STORE_SEGMENTS, key_of(at, key), &value);
            assert_int_equal(found, at % 11 != 0 || at % 5 == 2);
            assert_true(!found || is_value_of(at, value));
            store_abort(&txn);
        }
        store_close(store);
        leaves++;
    }
    assert_true(leaves > 10);
    remove_place(&place);
}

/* Pages are given back by what stands in front of a value. */
static void test_value_header(void **state)
{
    (void)state;
    static const struct {
        size_t at;
        unsigned char bit;
    } damages[] = { { 5 /* of the number */, 1 },
                    { PAGE_FLAGS, 1 },
                    { PAGE_VALUE_PAGES, 1 },
                    { PAGE_FLAGS, PAGE_IS_DIRTY } };
    struct place place;
    fill(&place);
    size_t met = 0;
    for (size_t i = 2; i < place.image.pages; i++) {
        unsigned char page[PAGE], key[512], old[12000];
        memcpy(page, image_page(&place.image, i), PAGE);
        if (page_u64(page) != i || page_u16(page + PAGE_FLAGS) != PAGE_IS_OVERFLOW) continue;
        page[damages[i / 2 % 4].at] ^= damages[i / 2 % 4].bit;
        image_write(&place.image, i, page);
        struct store *store = open_sound(&place); /* values are not read */
        struct error err = { 0 };
        for (size_t at = 0; at < KEYS; at += 3) {
            struct store_txn txn = { 0 };
            struct slice value;
            assert_int_equal(store_begin(store, true, &txn, &err), 0);
            bool hit = store_get(&txn, STORE_SEGMENTS, key_of(at, key), &value) &&
                       value.bytes >= PAGE / 2 &&
                       memcmp((const char *)value.data - PAGE_NODES, page, PAGE_NODES) == 0;
            if (hit && i % 2 == 0)
                store_put(&txn, STORE_SEGMENTS, key_of(at, key), value_of(at, 2, old));
            else if (hit)
                store_delete(&txn, STORE_SEGMENTS, key_of(at, key));
            assert_int_equal(store_failed(&txn, &err), hit ? MEMD_ECORRUPT : 0);
            store_abort(&txn);
            met += hit;
        }
        store_close(store);
        if (met > 20) break;
    }
    assert_true(met > 20);
    remove_place(&place);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound),        cmocka_unit_test(test_mended),
        cmocka_unit_test(test_value_header), cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_last_page),    cmocka_unit_test(test_meta_pages),
        cmocka_unit_test(test_every_page),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

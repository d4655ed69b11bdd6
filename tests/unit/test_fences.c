/* SPDX-License-Identifier: Apache-2.0 */
/* test_fences.c — who is fenced off where pages are claimed twice, and what is told from damage:
 * single numbers are changed, and what the check says is compared with what it ought to say.
 * (test_pages.c damages everything and asks only that the process lives.)
 */
#include "tests/unit/pages_fixture.h"

#include <sys/stat.h>

enum { LONG_KEYS = 40, LONG_PAGES = 12, MANY = 300 };

/* Values of so many pages each, one behind the other. */
static void put_long(struct store_txn *txn, size_t i)
{
    static unsigned char value[LONG_PAGES * PAGE];
    unsigned char key[512];
    memset(value, (int)i, sizeof value);
    store_put(txn, STORE_TAILS, key_of(i, key), (struct slice){ value, sizeof value - PAGE_NODES });
}

/* Long values, of which the later half is deleted again: its pages are in one list, which has pages
 * of its own. */
static void fill_long(struct place *place)
{
    fill(place);
    struct error err = { 0 };
    struct store *store = open_sound(place);
    struct store_txn txn;
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    for (size_t i = 0; i < 2 * LONG_KEYS; i++) put_long(&txn, i);
    commit(&txn);
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    for (size_t i = LONG_KEYS; i < 2 * LONG_KEYS; i++) delete (&txn, STORE_TAILS, i);
    commit(&txn);
    store_close(store);
    image_read(&place->image);
}

static unsigned char *newest_meta(const struct place *place)
{
    return place->image.data + PAGE * image_newest_meta(&place->image);
}

static unsigned char *root_of(const struct place *place, size_t tree)
{
    return place->image.data + PAGE * page_u64(newest_meta(place) + tree + PAGE_TREE_ROOT);
}

/* Go from a page of a tree to the first leaf under it. */
static unsigned char *first_leaf(const struct place *place, unsigned char *page)
{
    while (page_u16(page + PAGE_FLAGS) == PAGE_IS_BRANCH)
        page = place->image.data + PAGE * page_u48(page_node(page, 0));
    return page;
}

/* Its record in the tree of tables. */
static unsigned char *table_record(const struct place *place, const char *name)
{
    unsigned char *main = root_of(place, PAGE_META_MAIN);
    for (size_t i = 0; i < page_count(main); i++) {
        struct page_key key = page_node_key(page_node(main, i));
        if (key.bytes == strlen(name) && memcmp(key.data, name, key.bytes) == 0)
            return main + (page_node_value(page_node(main, i)) - main);
    }
    fail_msg("no table %s", name);
    return NULL;
}

static unsigned char *table_leaf(const struct place *place, const char *name)
{
    uint64_t root = page_u64(table_record(place, name) + PAGE_TREE_ROOT);
    return first_leaf(place, place->image.data + PAGE * root);
}

/* The i-th record of a leaf that has pages of its own; NULL behind the last. */
static unsigned char *paged_node(unsigned char *leaf, size_t i)
{
    for (size_t at = 0; at < page_count(leaf); at++) {
        unsigned char *node = leaf + (page_node(leaf, at) - leaf);
        if (page_u16(node + PAGE_NODE_FLAGS) == PAGE_HAS_PAGES && i-- == 0) return node;
    }
    return NULL;
}

static unsigned char *number_in(unsigned char *node)
{
    return node + (page_node_value(node) - node);
}

static void set64(unsigned char *at, uint64_t value)
{
    memcpy(at, &value, sizeof value);
}

static void set32(unsigned char *at, uint32_t value)
{
    memcpy(at, &value, sizeof value);
}

/* The image, as it has been changed, is the store. */
static void write_all(const struct place *place)
{
    image_write(&place->image, 0, place->image.data);
}

/* So many damages in `table`, and none elsewhere. */
static struct store *open_damaged(const struct place *place, const char *table, size_t total)
{
    struct store *store = NULL;
    struct error err = { 0 };
    write_all(place);
    if (open_place(place, &store, &err) < 0) fail_msg("%s", err.text);
    const struct pages_report *report = store_damage(store);
    for (size_t i = 0; i < report->count; i++) {
        if (strcmp(report->list[i].table, table) != 0)
            fail_msg("'%s' page %llu: %s", report->list[i].table,
                     (unsigned long long)report->list[i].page, report->list[i].why);
    }
    assert_int_equal(report->total, total);
    return store;
}

/* How many of the long values can be read; they must be right then. */
static size_t count_long(struct store *store)
{
    size_t count = 0;
    for (size_t i = 0; i < LONG_KEYS; i++) {
        struct store_txn txn = { 0 };
        struct error err = { 0 };
        struct slice value;
        unsigned char key[512];
        assert_int_equal(store_begin(store, false, &txn, &err), 0);
        if (store_get(&txn, STORE_TAILS, key_of(i, key), &value)) {
            const unsigned char *bytes = value.data;
            assert_int_equal(value.bytes, LONG_PAGES * PAGE - PAGE_NODES);
            for (size_t j = 0; j < value.bytes; j++) assert_int_equal(bytes[j], i);
            count++;
        }
        store_abort(&txn);
    }
    return count;
}

/* LMDB gives the pages of a list back by its head: live ones with them, or it ends by an
 * assertion. */
static void test_head_of_list(void **state)
{
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct place place;
        fill_long(&place);
        unsigned char *node = paged_node(first_leaf(&place, root_of(&place, PAGE_META_FREE)), 0);
        assert_non_null(node);
        unsigned char *head = place.image.data + PAGE * page_u64(number_in(node));
        if (i == 0) head[PAGE_VALUE_PAGES] += 8;
        if (i == 1) head[PAGE_FLAGS] |= PAGE_IS_DIRTY;
        if (i == 2) head[0] ^= 1;
        if (i == 3) set32(node, 3); /* shorter than its own count */
        struct store *store = open_damaged(&place, "", 1);
        assert_int_equal(store_damage(store)->list[0].page, page_u64(number_in(node)));
        assert_int_equal(count_long(store), LONG_KEYS);
        store_close(store);
        remove_place(&place);
    }
}

/* A list that stands in its leaf is damaged there; and no list is older than the first
 * transaction: LMDB would read it again and again. */
static void test_age_of_list(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    unsigned char *leaf = first_leaf(&place, root_of(&place, PAGE_META_FREE));
    unsigned char *node = leaf + (page_node(leaf, 0) - leaf);
    assert_int_equal(page_u16(node + PAGE_NODE_FLAGS), 0);
    set64(node + PAGE_NODE_KEY, 0);
    store_close(open_damaged(&place, "", 1));
    set64(node + PAGE_NODE_KEY, 1);
    set64(number_in(node) + 8, 1); /* a meta page */
    struct store *store = open_damaged(&place, "", 1);
    assert_int_equal(store_damage(store)->list[0].page, (leaf - place.image.data) / PAGE);
    store_close(store);
    remove_place(&place);
}

/* The bit of a fence, where none is ever set. */
static void test_bit_of_root(void **state)
{
    (void)state;
    static const size_t trees[] = { PAGE_META_MAIN, PAGE_META_FREE };
    for (size_t i = 0; i < 2; i++) {
        struct place place;
        fill_long(&place);
        newest_meta(&place)[trees[i] + PAGE_TREE_ROOT + 5] ^= 0x80;
        struct store *store = open_damaged(&place, "", 0);
        assert_int_equal(count_long(store), LONG_KEYS);
        store_close(store);
        store_close(open_sound(&place));
        remove_place(&place);
    }
}

/* Into the midst of two others: they are right, though they are looked at later. */
static void test_into_others(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    unsigned char *leaf = table_leaf(&place, "tails");
    unsigned char *wrong = paged_node(leaf, 0), *other = paged_node(leaf, 1);
    assert_non_null(other);
    uint64_t number = page_u64(number_in(wrong));
    set64(number_in(wrong), page_u64(number_in(other)) + LONG_PAGES / 2);
    struct store *store = open_damaged(&place, "tails", 1);
    assert_int_equal(count_long(store), LONG_KEYS - 1);
    store_close(store);
    set64(number_in(wrong), number);
    store = open_damaged(&place, "", 0);
    assert_int_equal(count_long(store), LONG_KEYS);
    store_close(store);
    remove_place(&place);
}

/* Two of the same pages, and both fit: neither may give them back. */
static void test_of_two(void **state)
{
    (void)state;
    struct place place;
    struct error err = { 0 };
    fill_long(&place);
    unsigned char *leaf = table_leaf(&place, "tails");
    unsigned char *wrong = paged_node(leaf, 0), *other = paged_node(leaf, 1);
    set64(number_in(wrong), page_u64(number_in(other)));
    struct store *store = open_damaged(&place, "tails", 2);
    assert_int_equal(count_long(store), LONG_KEYS - 2);
    size_t deleted = 0;
    for (size_t i = 0; i < LONG_KEYS; i++) {
        struct store_txn txn = { 0 };
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        delete (&txn, STORE_TAILS, i);
        deleted += store_commit(&txn, &err) == 0;
    }
    assert_in_range(deleted, 1, LONG_KEYS - 2); /* near a fence leaves are not merged */
    store_close(store);
    assert_int_equal(open_place(&place, &store, &err), 0);
    assert_int_equal(store_damage(store)->total, 2);
    store_close(store);
    remove_place(&place);
}

/* A value becomes shorter beside a leaf that is fenced off: nothing is merged with that. */
static void test_shorter_beside(void **state)
{
    (void)state;
    struct place place;
    struct error err = { 0 };
    unsigned char value[PAGE] = { 0 }, key[512];
    fill_long(&place);
    unsigned char *leaf = table_leaf(&place, "tails");
    size_t lost = page_count(leaf);
    leaf[PAGE_FLAGS] ^= 1;
    struct store *store = open_damaged(&place, "tails", 1);
    size_t shorter = 0;
    for (size_t i = 0; i < LONG_KEYS; i++) {
        struct store_txn txn = { 0 };
        assert_int_equal(store_begin(store, true, &txn, &err), 0);
        store_put(&txn, STORE_TAILS, key_of(i, key), (struct slice){ value, sizeof value });
        shorter += store_commit(&txn, &err) == 0;
    }
    assert_int_equal(shorter, LONG_KEYS - lost);
    store_close(store);
    remove_place(&place);
}

/* To free pages: the list stays. */
static void test_into_free(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    unsigned char *list = paged_node(first_leaf(&place, root_of(&place, PAGE_META_FREE)), 0);
    const unsigned char *numbers = place.image.data + PAGE * page_u64(number_in(list)) + PAGE_NODES;
    unsigned char *wrong = paged_node(table_leaf(&place, "tails"), 0);
    uint64_t in_midst = page_u64(numbers + 8 * (page_u64(numbers) / 2));
    if (page_u64(place.image.data + PAGE * in_midst) == in_midst)
        in_midst--; /* not at a stale head */
    set64(number_in(wrong), in_midst);
    struct store *store = open_damaged(&place, "tails", 1);
    assert_int_equal(count_long(store), LONG_KEYS - 1);
    store_close(store);
    remove_place(&place);
}

/* Over a page of a tree that is looked at later. */
static void test_into_tree(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    unsigned char *wrong = paged_node(table_leaf(&place, "chains"), 0);
    uint64_t number = page_u64(table_record(&place, "segments") + PAGE_TREE_ROOT);
    set64(number_in(wrong), number);
    store_close(open_damaged(&place, "chains", 1));
    remove_place(&place);
}

/* What stands in front of a value of so many pages. */
static void set_head(unsigned char *page, uint64_t number, uint32_t pages)
{
    set64(page, number);
    set32(page + PAGE_FLAGS - 2, (uint32_t)PAGE_IS_OVERFLOW << 16);
    set32(page + PAGE_VALUE_PAGES, pages);
}

/* Room for `pages` more behind the last page, zeros; the number of the first. */
static uint64_t room_behind(struct place *place, size_t pages)
{
    struct image *image = &place->image;
    uint64_t next = page_u64(newest_meta(place) + PAGE_META_LAST_PAGE) + 1;
    assert_true(next <= image->pages);
    image->pages = next + pages;
    image->data = realloc(image->data, image->pages * PAGE);
    assert_non_null(image->data);
    memset(image->data + next * PAGE, 0, pages * PAGE);
    return next;
}

/* The second child of the root of `segments` lies elsewhere; where it lay. */
static uint64_t move_child(const struct place *place, uint64_t number)
{
    uint64_t at = page_u64(table_record(place, "segments") + PAGE_TREE_ROOT);
    unsigned char *root = place->image.data + PAGE * at;
    assert_int_equal(page_u16(root + PAGE_FLAGS), PAGE_IS_BRANCH);
    unsigned char *node = root + (page_node(root, 1) - root);
    uint64_t before = page_u48(node);
    memcpy(node, &number, 6);
    return before;
}

/* A commit that was cut short left pages behind the last; what leads to them is damaged, not the
 * number of the last page. */
static void test_behind_the_last(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    uint64_t next = room_behind(&place, 4);
    unsigned char *page = place.image.data + next * PAGE;
    memcpy(page, table_leaf(&place, "segments"), PAGE);
    set64(page, next);
    set_head(page + PAGE, next + 1, 2);
    move_child(&place, next);
    unsigned char *wrong = paged_node(table_leaf(&place, "segments"), 0);
    set64(number_in(wrong), next + 1);
    set32(wrong, 2 * PAGE);
    store_close(open_damaged(&place, "segments", 2));
    remove_place(&place);
}

/* What was fenced off led behind the last page, and later a commit that was cut short left just
 * that there: its number was wrong before, and the store is opened as it was then. */
static void test_fence_behind(void **state)
{
    (void)state;
    struct place place;
    fill_long(&place);
    uint64_t next = room_behind(&place, 1 + LONG_PAGES);
    unsigned char *wrong = paged_node(table_leaf(&place, "tails"), 0);
    set64(number_in(wrong), next + 1);
    uint64_t child = move_child(&place, next);
    write_all(&place);

    struct store *store = NULL;
    struct error err = { 0 };
    assert_int_equal(open_place(&place, &store, &err), 0);
    assert_int_equal(store_damage(store)->total, 2);
    store_close(store);
    image_read(&place.image);
    unsigned char *page = place.image.data + next * PAGE;
    for (size_t i = 0; i < 2; i++) { /* a value, then a page of a tree */
        memset(page, 0, (size_t)(1 + LONG_PAGES) * PAGE);
        if (i == 0) {
            set_head(page + PAGE, next + 1, LONG_PAGES);
        } else {
            memcpy(page, place.image.data + child * PAGE, PAGE);
            set64(page, next);
        }
        write_all(&place);
        if (open_place(&place, &store, &err) < 0) fail_msg("%s", err.text);
        assert_int_equal(store_damage(store)->total, 2);
        assert_int_equal(count_long(store), LONG_KEYS - 1);
        store_close(store);
    }
    remove_place(&place);
}

/* A node with a long key in a branch, not its first; NULL: it has none. */
static unsigned char *long_node(unsigned char *branch)
{
    for (size_t i = 1; i < page_count(branch); i++) {
        unsigned char *node = branch + (page_node(branch, i) - branch);
        if (page_node_key(node).bytes > 32) return node;
    }
    return NULL;
}

/* A node that stands in the key of another, and takes as much room as its own did: a fence there
 * would change that key. */
static void test_node_in_key(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    uint64_t number = page_u64(table_record(&place, "segments") + PAGE_TREE_ROOT);
    unsigned char *branch = place.image.data + PAGE * number;
    for (size_t i = 0; long_node(branch) == NULL; i++) {
        const unsigned char *root = place.image.data + PAGE * number;
        assert_in_range(i, 0, page_count(root) - 1);
        branch = place.image.data + PAGE * page_u48(page_node(root, i));
    }
    assert_int_equal(page_u16(branch + PAGE_FLAGS), PAGE_IS_BRANCH);
    assert_int_equal(page_u16(page_node(branch, 0) + PAGE_NODE_KEY_BYTES), 0);
    size_t inside = (size_t)(long_node(branch) - branch) + PAGE_NODE_KEY + 12;
    uint16_t at = (uint16_t)inside;
    memset(branch + inside, 0, PAGE_NODE_KEY);
    memcpy(branch + PAGE_NODES, &at, sizeof at);
    number = page_u64(branch);
    struct store *store = open_damaged(&place, "segments", 1);
    assert_int_equal(store_damage(store)->list[0].page, number);
    store_close(store);
    image_read(&place.image);
    for (size_t i = 0; i < PAGE_NODE_KEY; i++)
        assert_int_equal(place.image.data[PAGE * number + inside + i], 0);
    remove_place(&place);
}

/* It is known of a table that it is lost, however much is damaged before it. */
static void test_roots_are_listed(void **state)
{
    (void)state;
    struct place place;
    struct error err = { 0 };
    struct store_txn txn;
    fill(&place);
    struct store *store = open_sound(&place);
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    for (size_t i = 0; i < MANY; i++) {
        unsigned char value[PAGE] = { 0 }, key[2] = { (unsigned char)(i >> 8), (unsigned char)i };
        store_put(&txn, STORE_CONTEXTS, (struct slice){ key, 2 },
                  (struct slice){ value, sizeof value });
    }
    commit(&txn);
    store_close(store);
    image_read(&place.image);
    for (size_t i = 2; i < place.image.pages; i++) {
        unsigned char *page = place.image.data + i * PAGE;
        if (!image_in_tree(&place.image, i) || page_u16(page + PAGE_FLAGS) != PAGE_IS_LEAF)
            continue;
        for (size_t at = 0; at < page_count(page); at++) {
            unsigned char *node = page + (page_node(page, at) - page);
            bool of_many = page_u16(node + PAGE_NODE_KEY_BYTES) == 2;
            if (of_many) number_in(node)[4] ^= 1;
        }
    }
    set64(place.image.data + PAGE * page_u64(table_record(&place, "segments") + PAGE_TREE_ROOT), 0);
    write_all(&place);
    assert_int_equal(open_place(&place, &store, &err), 0);
    assert_int_equal(store_damage(store)->total, MANY + 1);
    assert_int_equal(store_begin(store, true, &txn, &err), 0);
    assert_int_equal(store_count(&txn, STORE_SEGMENTS), 0);
    assert_int_equal(store_count(&txn, STORE_CONTEXTS), MANY);
    store_put_number(&txn, "next", 1);
    commit(&txn);
    store_close(store);
    remove_place(&place);
}

/* A copy that `mdb_copy -n -c` made says that it is a file without a directory. */
static void test_copy_as_file(void **state)
{
    (void)state;
    struct place place;
    fill(&place);
    for (size_t i = 0; i < 2; i++)
        place.image.data[i * PAGE + PAGE_META_FREE + PAGE_TREE_FLAGS + 1] |= PAGE_WAS_FILE >> 8;
    write_all(&place);
    store_close(open_sound(&place));
    remove_place(&place);
}

/* The newest transaction has a lower number, or the one before it a higher one: that one is back,
 * which is said, once. */
static void test_older_state(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        struct place place;
        fill_long(&place);
        unsigned char *newest = newest_meta(&place);
        unsigned char *other = newest == place.image.data ? newest + PAGE : place.image.data;
        uint64_t txn = page_u64(newest + PAGE_META_TXN);
        assert_true(txn > 4 && page_u64(other + PAGE_META_TXN) == txn - 1);
        if (i == 0) set64(newest + PAGE_META_TXN, txn - 4);
        if (i == 1) set64(other + PAGE_META_TXN, txn - 1 + (UINT64_C(1) << 40));
        struct store *store = open_damaged(&place, "", 1);
        assert_int_equal(store_damage(store)->list[0].page, (other - place.image.data) / PAGE);
        struct store_txn again = { 0 };
        struct error err = { 0 };
        assert_int_equal(store_begin(store, true, &again, &err), 0);
        store_put_number(&again, "next", 1);
        commit(&again);
        store_close(store);
        store_close(open_sound(&place));
        remove_place(&place);
    }
}

/* A machine that went down: both meta pages become that of the last sync, and that is no damage. */
static void test_restored(void **state)
{
    (void)state;
    struct place place;
    struct error err = { 0 };
    char synced[80];
    fill(&place);
    for (size_t i = 0; i < 4; i++) {
        struct store_config config = { place.path, 64 << 20, STORE_PROTECTED, i % 2 ? "b" : "a" };
        struct store *store = NULL;
        if (store_open(&config, &store, &err) < 0) fail_msg("%s", err.text);
        assert_int_equal(store_damage(store)->total, 0);
        for (size_t j = 0; j < i + 2; j++) { /* the first is synced */
            struct store_txn txn = { 0 };
            assert_int_equal(store_begin(store, true, &txn, &err), 0);
            put(&txn, STORE_SEGMENTS, 10 * i + j, 1);
            commit(&txn);
            if (j == 0) assert_int_equal(store_sync(store, &err), 0);
        }
        store_close(store);
    }
    snprintf(synced, sizeof synced, "%s/synced", place.path);
    assert_int_equal(unlink(synced), 0);
    remove_place(&place);
}

/* A record of the tree of tables that has no table. */
static void test_no_table(void **state)
{
    (void)state;
    struct place place;
    struct store *store = NULL;
    struct error err = { 0 };
    fill(&place);
    unsigned char *record = table_record(&place, "segments");
    unsigned char *node = record - strlen("segments") - PAGE_NODE_KEY;
    memset(node, 0, PAGE_NODE_KEY);
    node[PAGE_NODE_KEY_BYTES] = (unsigned char)(strlen("segments") + PAGE_TREE_BYTES);
    write_all(&place);
    assert_int_equal(open_place(&place, &store, &err), MEMD_ECORRUPT);
    assert_non_null(strstr(err.text, "of no kind"));
    remove_place(&place);
}

/* What cannot be looked at is not opened. */
static void test_no_file(void **state)
{
    (void)state;
    struct place place;
    struct pages_report report = { 0 };
    struct error err = { 0 };
    make_place(&place);
    assert_int_equal(pages_check(place.path, &report, &err), 0); /* nothing is there yet */
    assert_int_equal(mkdir(place.image.file, 0700), 0);
    assert_int_equal(pages_check(place.path, &report, &err), MEMD_EIO);
    assert_int_equal(rmdir(place.image.file), 0);
    assert_int_equal(rmdir(place.path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_head_of_list), cmocka_unit_test(test_age_of_list),
        cmocka_unit_test(test_bit_of_root),  cmocka_unit_test(test_into_others),
        cmocka_unit_test(test_of_two),       cmocka_unit_test(test_into_free),
        cmocka_unit_test(test_into_tree),    cmocka_unit_test(test_behind_the_last),
        cmocka_unit_test(test_node_in_key),  cmocka_unit_test(test_roots_are_listed),
        cmocka_unit_test(test_copy_as_file), cmocka_unit_test(test_older_state),
        cmocka_unit_test(test_no_table),     cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_fence_behind), cmocka_unit_test(test_shorter_beside),
        cmocka_unit_test(test_restored),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* uploads.c — uploaded tensors in the store and in memory. See uploads.h. */
#include "memory/uploads.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "base/half.h"
#include "memory/catalog_state.h"
#include "memory/owned.h"

enum { SET_BYTES_MAX = FORMAT_HEADER_BYTES + 64 + METHOD_NAME_BYTES };

static void put_data(struct upload_data *data)
{
    if (data == NULL || atomic_fetch_sub(&data->references, 1) > 1) return;
    free(data);
}

struct uploads *uploads_get(struct uploads *uploads)
{
    if (uploads != NULL) atomic_fetch_add(&uploads->references, 1);
    return uploads;
}

void uploads_put(struct uploads *uploads)
{
    if (uploads == NULL || atomic_fetch_sub(&uploads->references, 1) > 1) return;
    for (size_t i = 0; i < uploads->params.count; i++) put_data(uploads->data[i]);
    atomic_fetch_sub(&uploads->catalog->state_bytes, uploads->bytes);
    free(uploads->items);
    free(uploads->data);
    free(uploads);
}

void uploads_putp(struct uploads **uploads)
{
    uploads_put(*uploads);
}

/* Empty, with room. */
static int new_uploads(struct catalog *catalog, uint64_t owner, size_t capacity,
                       struct uploads **ret_uploads, struct error *err)
{
    CLEANUP(uploads_putp) struct uploads *uploads = calloc(1, sizeof *uploads);
    if (uploads == NULL) return error_set(err, MEMD_ENOMEM, "no memory for tensors");
    atomic_init(&uploads->references, 1);
    uploads->catalog = catalog;
    uploads->owner = owner;
    uploads->items = calloc(capacity, sizeof *uploads->items);
    uploads->data = calloc(capacity, sizeof(struct upload_data *));
    if (uploads->items == NULL || uploads->data == NULL)
        return error_set(err, MEMD_ENOMEM, "no memory for %zu tensors", capacity);
    uploads->params.items = uploads->items;
    *ret_uploads = TAKE(uploads);
    return 0;
}

/* The numbers of `value` in fp32. */
static int new_data(const struct tensor *value, uint64_t version, struct upload_data **ret_data,
                    struct error *err)
{
    size_t count = tensor_elements(value), bytes = count * sizeof(float);
    struct upload_data *data = malloc(sizeof *data + bytes);
    if (data == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a tensor of %zu numbers",
                                       count);
    atomic_init(&data->references, 1);
    data->version = version;
    data->bytes = bytes;
    half_load(value->data, value->dtype, count, data->numbers);
    *ret_data = data;
    return 0;
}

/* Takes the reference over. */
static void add(struct uploads *uploads, const struct param *param, struct upload_data *data)
{
    size_t i = uploads->params.count++;
    uploads->items[i] = *param;
    uploads->items[i].value.data = data->numbers;
    uploads->items[i].value.dtype = DTYPE_FP32;
    uploads->data[i] = data;
    uploads->bytes += data->bytes;
    atomic_fetch_add(&uploads->catalog->state_bytes, data->bytes);
    if (data->version > uploads->params.version) uploads->params.version = data->version;
}

int uploads_decode(struct slice value, struct tensor *ret_value, uint64_t *ret_version,
                   struct error *err)
{
    struct value_header header;
    int rc = format_decode(value.data, value.bytes, &header, err);
    if (rc == 0 && header.kind != FORMAT_KIND_PARAM)
        rc = error_set(err, MEMD_ECORRUPT, "the header says kind %u", header.kind);
    if (rc == 0) rc = format_verify(value.data, value.bytes, err);
    if (rc < 0) return rc;
    const unsigned char *payload = (const unsigned char *)value.data + FORMAT_HEADER_BYTES;
    struct bytes_reader in = bytes_reader(payload, value.bytes - FORMAT_HEADER_BYTES);
    struct tensor tensor = { .dtype = DTYPE_FP32, .dims = bytes_get_le32(&in) };
    uint32_t zero = bytes_get_le32(&in);
    bool sound = zero == 0 && tensor.dims >= 1 && tensor.dims <= TENSOR_DIMS_MAX;
    uint64_t left = (value.bytes - FORMAT_HEADER_BYTES) / sizeof(float);
    for (uint32_t i = 0; sound && i < tensor.dims; i++) {
        uint64_t size = bytes_get_le64(&in);
        sound = size > 0 && size <= left; /* of what is left the product may be */
        if (sound) left /= size;
        tensor.shape[i] = (size_t)size;
    }
    if (!sound || in.bad || tensor_bytes(&tensor) != in.size_bytes - in.offset)
        return error_set(err, MEMD_ECORRUPT, "its axes do not say how long it is");
    tensor.data = payload + in.offset;
    *ret_value = tensor;
    *ret_version = header.position;
    return 0;
}

static int load_one(struct uploads *uploads, const struct param_key *key, struct slice value,
                    struct error *err)
{
    struct param param = { .layer = key->layer };
    struct upload_data *data = NULL;
    struct error why = { 0 };
    uint64_t version = 0;
    memcpy(param.name, key->name, sizeof param.name);
    int rc = uploads_decode(value, &param.value, &version, &why);
    if (rc == 0) rc = new_data(&param.value, version, &data, &why);
    if (rc < 0)
        return error_set(err, rc, "tensor \"%s\" of %" PRIu64 " layer %" PRIu32 ": %s", param.name,
                         key->owner, param.layer, why.text);
    add(uploads, &param, data);
    return 0;
}

static bool seek(struct store_txn *txn, uint64_t owner, struct store_cursor *cursor)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    return store_seek(txn, STORE_PARAMS, (struct slice){ key, format_key_id(owner, key) }, cursor);
}

static bool is_of(const struct store_cursor *cursor, uint64_t owner, struct param_key *ret_key)
{
    return format_read_param(cursor->key.data, cursor->key.bytes, ret_key) &&
           ret_key->owner == owner;
}

int uploads_load(struct catalog *catalog, struct store_txn *txn, uint64_t owner,
                 struct uploads **ret_uploads, struct error *err)
{
    struct store_cursor cursor;
    struct param_key key = { 0 };
    size_t count = 0;
    for (bool found = seek(txn, owner, &cursor); found && is_of(&cursor, owner, &key);
         found = store_next(&cursor))
        count++;
    store_cursor_close(&cursor);
    if (count == 0) {
        *ret_uploads = NULL;
        return store_failed(txn, err);
    }
    CLEANUP(uploads_putp) struct uploads *uploads = NULL;
    int rc = new_uploads(catalog, owner, count, &uploads, err);
    if (rc < 0) return rc;
    for (bool found = seek(txn, owner, &cursor); rc == 0 && found && is_of(&cursor, owner, &key);
         found = store_next(&cursor)) {
        memset(&key, 0, sizeof key);
        format_read_param(cursor.key.data, cursor.key.bytes, &key);
        rc = load_one(uploads, &key, cursor.value, err);
    }
    store_cursor_close(&cursor);
    if (rc == 0) rc = store_failed(txn, err);
    if (rc < 0) return rc;
    *ret_uploads = TAKE(uploads);
    return 0;
}

uint64_t uploads_version(struct store_txn *txn, uint64_t owner)
{
    struct store_cursor cursor;
    struct param_key key = { 0 };
    struct value_header header;
    uint64_t newest = 0;
    for (bool found = seek(txn, owner, &cursor); found && is_of(&cursor, owner, &key);
         found = store_next(&cursor)) {
        if (format_decode(cursor.value.data, cursor.value.bytes, &header, NULL) == 0 &&
            header.position > newest)
            newest = header.position;
    }
    store_cursor_close(&cursor);
    return newest;
}

int uploads_with(struct catalog *catalog, uint64_t owner, const struct uploads *before,
                 const struct param *param, struct uploads **ret_uploads, struct error *err)
{
    size_t count = before == NULL ? 0 : before->params.count;
    struct upload_data *data = NULL;
    CLEANUP(uploads_putp) struct uploads *uploads = NULL;
    int rc = new_uploads(catalog, owner, count + 1, &uploads, err);
    if (rc == 0)
        rc = new_data(&param->value, before == NULL ? 1 : before->params.version + 1, &data, err);
    if (rc < 0) return rc;
    for (size_t i = 0; i < count; i++) {
        const struct param *item = &before->items[i];
        if (item->layer == param->layer && strcmp(item->name, param->name) == 0) continue;
        atomic_fetch_add(&before->data[i]->references, 1);
        add(uploads, item, before->data[i]);
    }
    add(uploads, param, data); /* the last one is the newest */
    *ret_uploads = TAKE(uploads);
    return 0;
}

int uploads_store(struct store_txn *txn, const struct uploads *uploads, uint64_t model_hash,
                  int64_t *delta, struct error *err)
{
    size_t last = uploads->params.count - 1;
    const struct param *param = &uploads->items[last];
    size_t head = (2 * sizeof(uint32_t)) + param->value.dims * sizeof(uint64_t);
    size_t payload = head + uploads->data[last]->bytes;
    assert(uploads->data[last]->version == uploads->params.version);
    CLEANUP(free_ptr) unsigned char *value = malloc(FORMAT_HEADER_BYTES + payload);
    if (value == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a tensor");
    struct bytes_writer out = bytes_writer(value + FORMAT_HEADER_BYTES, payload);
    bytes_put_le32(&out, param->value.dims);
    bytes_put_le32(&out, 0);
    for (uint32_t i = 0; i < param->value.dims; i++) bytes_put_le64(&out, param->value.shape[i]);
    bytes_put(&out, param->value.data, uploads->data[last]->bytes);
    assert(!out.bad && out.offset == payload);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_PARAM,
                                        .dtype = DTYPE_FP32,
                                        .payload_bytes = payload,
                                        .position = uploads->params.version,
                                        .model_hash = model_hash },
                value);
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_param(uploads->owner, param->layer, param->name, key);
    owned_put(txn, STORE_PARAMS, (struct slice){ key, key_bytes },
              (struct slice){ value, FORMAT_HEADER_BYTES + payload }, delta);
    return 0;
}

int upload_set_decode(struct slice value, struct upload_set *ret_set, struct error *err)
{
    struct value_header header;
    int rc = format_decode(value.data, value.bytes, &header, err);
    if (rc == 0 && header.kind != FORMAT_KIND_SET)
        rc = error_set(err, MEMD_ECORRUPT, "the header says kind %u", header.kind);
    if (rc == 0) rc = format_verify(value.data, value.bytes, err);
    if (rc < 0) return rc;
    struct bytes_reader in =
        bytes_reader((const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                     value.bytes - FORMAT_HEADER_BYTES);
    struct upload_set set = { .id = bytes_get_le64(&in) };
    size_t text_bytes = 0;
    set.layers = bytes_get_le32(&in);
    set.sizes.query_heads = bytes_get_le32(&in);
    set.sizes.kv_heads = bytes_get_le32(&in);
    set.sizes.head_dim = bytes_get_le32(&in);
    set.sizes.state_width = bytes_get_le32(&in);
    const char *method = bytes_get_text(&in, &text_bytes);
    if (!bytes_done(&in) || method == NULL || text_bytes >= sizeof set.method)
        return error_set(err, MEMD_ECORRUPT, "%zu bytes are no set of tensors", in.size_bytes);
    memcpy(set.method, method, text_bytes);
    *ret_set = set;
    return 0;
}

int upload_set_find(struct store_txn *txn, const char *name, struct upload_set *ret_set,
                    struct error *err)
{
    struct slice value;
    if (!store_get(txn, STORE_SETS, (struct slice){ name, strlen(name) }, &value))
        return store_failed(txn, err);
    int rc = upload_set_decode(value, ret_set, err);
    return rc < 0 ? rc : 1;
}

void upload_set_store(struct store_txn *txn, const char *name, const struct upload_set *set,
                      int64_t *delta)
{
    unsigned char value[SET_BYTES_MAX];
    struct bytes_writer out = bytes_writer(value + FORMAT_HEADER_BYTES,
                                           sizeof value - FORMAT_HEADER_BYTES);
    bytes_put_le64(&out, set->id);
    bytes_put_le32(&out, set->layers);
    bytes_put_le32(&out, (uint32_t)set->sizes.query_heads);
    bytes_put_le32(&out, (uint32_t)set->sizes.kv_heads);
    bytes_put_le32(&out, (uint32_t)set->sizes.head_dim);
    bytes_put_le32(&out, (uint32_t)set->sizes.state_width);
    bytes_put_text(&out, set->method, strlen(set->method));
    assert(!out.bad);
    format_seal(&(struct value_header){ .kind = FORMAT_KIND_SET, .payload_bytes = out.offset },
                value);
    owned_put(txn, STORE_SETS, (struct slice){ name, strlen(name) },
              (struct slice){ value, FORMAT_HEADER_BYTES + out.offset }, delta);
}

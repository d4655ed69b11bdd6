/* SPDX-License-Identifier: Apache-2.0 */
/* model.c — a descriptor is first brought to one normal form (defaults filled in, fields without
 * meaning cleared), so that comparing, hashing and storing it need no rules of their own: equal
 * meaning is equal bytes.
 */
#include "memory/model.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/tensor.h"
#include "memory/format.h"

enum { MODEL_BYTES_MAX = 160 + LIMIT_FINGERPRINT_BYTES };

static int check_shape(const struct model *model, struct error *err)
{
    if (model->layers == 0 || model->layers > LIMIT_LAYERS)
        return error_set(err, MEMD_EINVAL, "model has %" PRIu32 " layers, 1 to %u are allowed",
                         model->layers, LIMIT_LAYERS);
    if (model->query_heads == 0 || model->query_heads > LIMIT_HEADS)
        return error_set(err, MEMD_EINVAL, "model has %" PRIu32 " query heads, 1 to %u are allowed",
                         model->query_heads, LIMIT_HEADS);
    if (model->kv_heads == 0 || model->kv_heads > model->query_heads ||
        model->query_heads % model->kv_heads != 0)
        return error_set(err, MEMD_EINVAL,
                         "%" PRIu32 " query heads cannot share %" PRIu32 " KV heads",
                         model->query_heads, model->kv_heads);
    if (model->head_dim < 8 || model->head_dim > LIMIT_HEAD_DIM || model->head_dim % 8 != 0)
        return error_set(err, MEMD_EINVAL,
                         "head_dim is %" PRIu32 ", it must be a multiple of 8 in 8 to %u",
                         model->head_dim, LIMIT_HEAD_DIM);
    if (!dtype_is_float(model->dtype))
        return error_set(err, MEMD_EINVAL, "dtype %" PRIu32 " is not float32, float16 or bfloat16",
                         model->dtype);
    return 0;
}

/* Clear what the scaling does not use, fill in what it defaults to. */
static void normalise_rope(struct rope_config *rope, uint32_t head_dim)
{
    if (rope->rotary_dims == 0) rope->rotary_dims = head_dim;
    bool yarn = rope->scaling == ROPE_SCALE_YARN, llama3 = rope->scaling == ROPE_SCALE_LLAMA3;
    if (rope->scaling == ROPE_SCALE_NONE) rope->factor = 0;
    if (!llama3) rope->low_freq_factor = rope->high_freq_factor = 0;
    if (!llama3 && !yarn) rope->original_context = 0;
    if (!yarn) rope->beta_fast = rope->beta_slow = rope->attention_factor = 0;
    if (!yarn) return;
    if (rope->beta_fast == 0) rope->beta_fast = 32;
    if (rope->beta_slow == 0) rope->beta_slow = 1;
    if (rope->attention_factor == 0) rope->attention_factor = 0.1 * log(rope->factor) + 1;
}

int model_check(struct model *model, struct error *err)
{
    struct model checked = *model;
    int rc = check_shape(&checked, err);
    if (rc < 0) return rc;
    if (memchr(checked.fingerprint, 0, sizeof checked.fingerprint) == NULL)
        return error_set(err, MEMD_ELIMIT, "fingerprint is longer than %u bytes",
                         LIMIT_FINGERPRINT_BYTES);
    if (checked.has_rope) {
        struct rope unused;
        rc = rope_init(&checked.rope, checked.head_dim, &unused, err);
        if (rc < 0) return rc;
        normalise_rope(&checked.rope, checked.head_dim);
    } else {
        checked.rope = (struct rope_config){ 0 };
        checked.rotated = false;
    }
    if (!isfinite(checked.attention_scale))
        return error_set(err, MEMD_EINVAL, "attention_scale is not a finite number");
    if (checked.attention_scale == 0) checked.attention_scale = 1 / sqrt((double)checked.head_dim);
    *model = checked;
    return 0;
}

void model_encode(const struct model *model, struct bytes_writer *out)
{
    const struct rope_config *rope = &model->rope;
    bytes_put_le32(out, model->layers);
    bytes_put_le32(out, model->query_heads);
    bytes_put_le32(out, model->kv_heads);
    bytes_put_le32(out, model->head_dim);
    bytes_put_le32(out, model->dtype);
    bytes_put_u8(out, model->has_rope);
    bytes_put_u8(out, model->rotated);
    bytes_put_le16(out, 0);
    bytes_put_f64(out, model->attention_scale);
    bytes_put_f64(out, rope->theta);
    bytes_put_le32(out, rope->pairing);
    bytes_put_le32(out, rope->scaling);
    bytes_put_f64(out, rope->factor);
    bytes_put_f64(out, rope->low_freq_factor);
    bytes_put_f64(out, rope->high_freq_factor);
    bytes_put_le64(out, rope->original_context);
    bytes_put_f64(out, rope->beta_fast);
    bytes_put_f64(out, rope->beta_slow);
    bytes_put_f64(out, rope->attention_factor);
    bytes_put_le32(out, rope->rotary_dims);
    bytes_put_text(out, model->fingerprint, strlen(model->fingerprint));
}

static void decode_rope(struct bytes_reader *in, struct rope_config *ret_rope)
{
    ret_rope->theta = bytes_get_f64(in);
    ret_rope->pairing = bytes_get_le32(in);
    ret_rope->scaling = bytes_get_le32(in);
    ret_rope->factor = bytes_get_f64(in);
    ret_rope->low_freq_factor = bytes_get_f64(in);
    ret_rope->high_freq_factor = bytes_get_f64(in);
    ret_rope->original_context = bytes_get_le64(in);
    ret_rope->beta_fast = bytes_get_f64(in);
    ret_rope->beta_slow = bytes_get_f64(in);
    ret_rope->attention_factor = bytes_get_f64(in);
    ret_rope->rotary_dims = bytes_get_le32(in);
}

int model_decode(struct bytes_reader *in, struct model *ret_model, struct error *err)
{
    struct model model = { .layers = bytes_get_le32(in) };
    model.query_heads = bytes_get_le32(in);
    model.kv_heads = bytes_get_le32(in);
    model.head_dim = bytes_get_le32(in);
    model.dtype = bytes_get_le32(in);
    model.has_rope = bytes_get_u8(in) != 0;
    model.rotated = bytes_get_u8(in) != 0;
    bytes_get_le16(in);
    model.attention_scale = bytes_get_f64(in);
    decode_rope(in, &model.rope);
    size_t text_bytes = 0;
    const char *text = bytes_get_text(in, &text_bytes);
    if (in->bad || text == NULL || text_bytes > LIMIT_FINGERPRINT_BYTES)
        return error_set(err, MEMD_ECORRUPT, "model descriptor is cut short");
    memcpy(model.fingerprint, text, text_bytes);
    struct error why = { 0 };
    if (model_check(&model, &why) < 0)
        return error_set(err, MEMD_ECORRUPT, "stored model descriptor: %s", why.text);
    *ret_model = model;
    return 0;
}

uint64_t model_hash(const struct model *model)
{
    unsigned char encoded[MODEL_BYTES_MAX];
    struct bytes_writer out = bytes_writer(encoded, sizeof encoded);
    model_encode(model, &out);
    assert(!out.bad);
    return format_hash(encoded, out.offset);
}

static int differs_u64(const char *field, uint64_t stored, uint64_t wanted, struct error *err)
{
    if (stored == wanted) return 0;
    return error_set(err, MEMD_EMISMATCH, "context has %s %" PRIu64 ", the client says %" PRIu64,
                     field, stored, wanted);
}

static int differs_f64(const char *field, double stored, double wanted, struct error *err)
{
    /* Bit by bit: NaN is itself. NOLINTNEXTLINE(bugprone-suspicious-memory-comparison) */
    if (memcmp(&stored, &wanted, sizeof stored) == 0) return 0;
    return error_set(err, MEMD_EMISMATCH, "context has %s %.17g, the client says %.17g", field,
                     stored, wanted);
}

static int differs_dtype(uint32_t stored, uint32_t wanted, struct error *err)
{
    if (stored == wanted) return 0;
    return error_set(err, MEMD_EMISMATCH, "context has dtype %s, the client says %s",
                     dtype_name(stored), dtype_name(wanted));
}

static int compare_rope(const struct rope_config *a, const struct rope_config *b, struct error *err)
{
    int rc = differs_f64("rope theta", a->theta, b->theta, err);
    if (rc == 0) rc = differs_u64("rope pairing", a->pairing, b->pairing, err);
    if (rc == 0) rc = differs_u64("rope scaling", a->scaling, b->scaling, err);
    if (rc == 0) rc = differs_f64("rope factor", a->factor, b->factor, err);
    if (rc == 0)
        rc = differs_f64("rope low_freq_factor", a->low_freq_factor, b->low_freq_factor, err);
    if (rc == 0)
        rc = differs_f64("rope high_freq_factor", a->high_freq_factor, b->high_freq_factor, err);
    if (rc == 0)
        rc = differs_u64("rope original_context", a->original_context, b->original_context, err);
    if (rc == 0) rc = differs_f64("rope beta_fast", a->beta_fast, b->beta_fast, err);
    if (rc == 0) rc = differs_f64("rope beta_slow", a->beta_slow, b->beta_slow, err);
    if (rc == 0)
        rc = differs_f64("rope attention_factor", a->attention_factor, b->attention_factor, err);
    if (rc == 0) rc = differs_u64("rope rotary_dims", a->rotary_dims, b->rotary_dims, err);
    return rc;
}

int model_compare(const struct model *stored, const struct model *wanted, struct error *err)
{
    int rc = differs_u64("layers", stored->layers, wanted->layers, err);
    if (rc == 0) rc = differs_u64("query_heads", stored->query_heads, wanted->query_heads, err);
    if (rc == 0) rc = differs_u64("kv_heads", stored->kv_heads, wanted->kv_heads, err);
    if (rc == 0) rc = differs_u64("head_dim", stored->head_dim, wanted->head_dim, err);
    if (rc == 0) rc = differs_dtype(stored->dtype, wanted->dtype, err);
    if (rc == 0) rc = differs_u64("rope present", stored->has_rope, wanted->has_rope, err);
    if (rc == 0) rc = differs_u64("rotated", stored->rotated, wanted->rotated, err);
    if (rc == 0) rc = compare_rope(&stored->rope, &wanted->rope, err);
    if (rc == 0) {
        rc = differs_f64("attention_scale", stored->attention_scale, wanted->attention_scale, err);
    }
    if (rc < 0) return rc;
    if (strcmp(stored->fingerprint, wanted->fingerprint) == 0) return 0;
    return error_set(err, MEMD_EMISMATCH,
                     "context has fingerprint \"%.80s\", the client says \"%.80s\"",
                     stored->fingerprint, wanted->fingerprint);
}

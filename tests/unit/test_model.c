/* SPDX-License-Identifier: Apache-2.0 */
/* test_model.c — descriptors: what is refused, what is filled in, what differs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/error.h"
#include "base/tensor.h"
#include "memory/model.h"

static struct model sound(void)
{
    return (struct model){ .layers = 4,
                           .query_heads = 8,
                           .kv_heads = 2,
                           .head_dim = 64,
                           .dtype = DTYPE_FP16,
                           .has_rope = true,
                           .rope = { .theta = 10000 } };
}

struct refusal {
    const char *says;
    struct model model;
};

static void test_refusals(void **state)
{
    (void)state;
    struct refusal cases[10];
    for (size_t i = 0; i < 10; i++) cases[i].model = sound();
    cases[0].says = "layers", cases[0].model.layers = 0;
    cases[1].says = "layers", cases[1].model.layers = LIMIT_LAYERS + 1;
    cases[2].says = "query heads", cases[2].model.query_heads = 0;
    cases[3].says = "KV heads", cases[3].model.kv_heads = 3;
    cases[4].says = "KV heads", cases[4].model.kv_heads = 0;
    cases[5].says = "head_dim", cases[5].model.head_dim = 60;
    cases[6].says = "head_dim", cases[6].model.head_dim = LIMIT_HEAD_DIM + 8;
    cases[7].says = "dtype", cases[7].model.dtype = DTYPE_U64;
    cases[8].says = "attention_scale", cases[8].model.attention_scale = NAN;
    cases[9].says = "theta", cases[9].model.rope.theta = -1;
    for (size_t i = 0; i < 10; i++) {
        struct error err = { 0 };
        struct model before = cases[i].model;
        int rc = model_check(&cases[i].model, &err);
        if (rc != MEMD_EINVAL || strstr(err.text, cases[i].says) == NULL)
            fail_msg("case %zu: %s, \"%s\" does not name %s", i, error_name(rc), err.text,
                     cases[i].says);
        assert_memory_equal(&before, &cases[i].model, sizeof before);
    }
}

static void test_defaults_make_equal(void **state)
{
    (void)state;
    struct error err = { 0 };
    struct model a = sound(), b = sound();
    b.attention_scale = 0.125;
    b.rope.rotary_dims = 64;
    b.rope.factor = 7; /* means nothing without scaling */
    b.rope.low_freq_factor = 3;
    assert_int_equal(model_check(&a, &err), 0);
    assert_int_equal(model_check(&b, &err), 0);
    assert_int_equal(model_compare(&a, &b, &err), 0);
    assert_true(model_hash(&a) == model_hash(&b));
    a = sound(), b = sound();
    a.rope.scaling = b.rope.scaling = ROPE_SCALE_YARN;
    a.rope.factor = b.rope.factor = 8;
    a.rope.original_context = b.rope.original_context = 4096;
    b.rope.beta_fast = 32;
    b.rope.beta_slow = 1;
    assert_int_equal(model_check(&a, &err), 0);
    assert_int_equal(model_check(&b, &err), 0);
    assert_int_equal(model_compare(&a, &b, &err), 0);
    struct model opaque = sound();
    opaque.has_rope = false;
    opaque.rotated = true;
    assert_int_equal(model_check(&opaque, &err), 0);
    assert_false(opaque.rotated);
    assert_true(opaque.rope.theta == 0);
}

static void expect_difference(const struct model *changed, const char *field)
{
    struct error err = { 0 };
    struct model stored = sound(), wanted = *changed;
    if (model_check(&stored, &err) < 0 || model_check(&wanted, &err) < 0) fail_msg("%s", err.text);
    int rc = model_compare(&stored, &wanted, &err);
    if (rc != MEMD_EMISMATCH || strstr(err.text, field) == NULL)
        fail_msg("%s: %s \"%s\"", field, error_name(rc), err.text);
    assert_true(model_hash(&stored) != model_hash(&wanted));
}

static void test_every_field_counts(void **state)
{
    (void)state;
    struct model model;
    model = sound(), model.layers = 5, expect_difference(&model, "layers");
    model = sound(), model.query_heads = 16, expect_difference(&model, "query_heads");
    model = sound(), model.kv_heads = 4, expect_difference(&model, "kv_heads");
    model = sound(), model.head_dim = 128, expect_difference(&model, "head_dim");
    model = sound(), model.dtype = DTYPE_BF16, expect_difference(&model, "dtype");
    model = sound(), model.has_rope = false, expect_difference(&model, "rope");
    model = sound(), model.rotated = true, expect_difference(&model, "rotated");
    model = sound(), model.rope.theta = 20000, expect_difference(&model, "theta");
    model = sound(), model.rope.pairing = ROPE_PAIR_INTERLEAVED,
    expect_difference(&model, "pairing");
    model = sound(), model.rope.rotary_dims = 32, expect_difference(&model, "rotary_dims");
    model = sound(), model.attention_scale = 0.5, expect_difference(&model, "attention_scale");
    model = sound(), model.fingerprint[0] = 'x', expect_difference(&model, "fingerprint");
    model = sound(), model.rope.scaling = ROPE_SCALE_LINEAR, model.rope.factor = 2;
    expect_difference(&model, "scaling");
}

static void test_encode_decode(void **state)
{
    (void)state;
    struct error err = { 0 };
    struct model model = sound(), back;
    memset(model.fingerprint, 'f', LIMIT_FINGERPRINT_BYTES);
    assert_int_equal(model_check(&model, &err), 0);
    unsigned char bytes[2048];
    struct bytes_writer out = bytes_writer(bytes, sizeof bytes);
    model_encode(&model, &out);
    assert_false(out.bad);
    struct bytes_reader in = bytes_reader(bytes, out.offset);
    assert_int_equal(model_decode(&in, &back, &err), 0);
    assert_true(bytes_done(&in));
    assert_int_equal(model_compare(&model, &back, &err), 0);
    for (size_t cut = 0; cut < out.offset; cut++) {
        in = bytes_reader(bytes, cut);
        assert_int_equal(model_decode(&in, &back, &err), MEMD_ECORRUPT);
    }
    bytes[16] = DTYPE_U32; /* a dtype that no model has */
    in = bytes_reader(bytes, out.offset);
    assert_int_equal(model_decode(&in, &back, &err), MEMD_ECORRUPT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_defaults_make_equal),
        cmocka_unit_test(test_every_field_counts),
        cmocka_unit_test(test_encode_decode),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

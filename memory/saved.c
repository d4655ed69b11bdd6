/* SPDX-License-Identifier: Apache-2.0 */
/* saved.c — the one value of a layer in the table `indexes`: the version of its index, or the
 * checkpoint of its fold. It is found and verified by whoever needs it, and written by the builder.
 *
 * Writing happens without a pin. Whether the value is still true of the layer is asked on the
 * writer thread, where no truncate can come between the answer and the commit.
 */
#include "base/cleanup.h"
#include "base/error.h"
#include "memory/build.h"
#include "memory/chain.h"

int context_find_saved(struct context *context, uint32_t layer, struct store_txn *txn,
                       struct slice *ret_payload, uint64_t *ret_tokens, struct error *err)
{
    unsigned char key[FORMAT_KEY_BYTES_MAX];
    size_t key_bytes = format_key_layer(context->id, layer, key);
    struct slice value;
    struct value_header header;
    if (!store_get(txn, STORE_INDEXES, (struct slice){ key, key_bytes }, &value))
        return store_failed(txn, err);
    int rc = format_decode(value.data, value.bytes, &header, err);
    if (rc == 0 && (header.kind != FORMAT_KIND_INDEX ||
                    header.model_hash != context->shape.model_hash))
        rc = error_set(err, MEMD_ECORRUPT, "the header belongs to another value");
    if (rc == 0) rc = format_verify(value.data, value.bytes, err);
    if (rc < 0) return rc;
    *ret_payload = (struct slice){ (const unsigned char *)value.data + FORMAT_HEADER_BYTES,
                                   value.bytes - FORMAT_HEADER_BYTES };
    *ret_tokens = header.position;
    return 1;
}

struct save_job {
    struct writer_job job;
    uint64_t context_id;
    const struct saving *saving;
};

static bool is_current(const struct save_job *save)
{
    struct catalog *catalog = save->job.catalog;
    const struct saving *saving = save->saving;
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, save->context_id);
    bool current = context != NULL && !context->dropping && context->record != NULL;
    if (current) {
        pthread_mutex_lock(&context->lock);
        current = saving->is_current(&context->layers[saving->layer], saving->arg);
        pthread_mutex_unlock(&context->lock);
    }
    pthread_mutex_unlock(&catalog->lock);
    return current;
}

static int run_save(struct writer_job *job, struct error *err)
{
    struct save_job *save = (struct save_job *)(void *)job;
    struct slice value = save->saving->value;
    if (!is_current(save)) return 0;
    int rc = build_check_room(job->catalog, value.bytes, err);
    CLEANUP(store_abort) struct store_txn txn = { 0 };
    if (rc == 0) rc = store_begin(job->catalog->store, true, &txn, err);
    if (rc < 0) return rc;
    int64_t delta = 0;
    struct layer_key key = { save->context_id, save->saving->layer };
    chain_put_index(&txn, &key, value, &delta);
    rc = catalog_commit(job->catalog, &txn, delta, err);
    if (rc == 0) CATALOG_COUNT(job->catalog, built_bytes_total, value.bytes);
    return rc;
}

int build_save(struct build *build, const struct saving *saving, struct error *err)
{
    struct save_job job = { .job = { .run = run_save, .catalog = build->catalog },
                            .context_id = build->context_id,
                            .saving = saving };
    build_unpin(build);
    int rc = writer_run(build->catalog->writer, &job.job, err);
    build_pin(build);
    return rc;
}

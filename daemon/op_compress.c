/* SPDX-License-Identifier: Apache-2.0 */
/* op_compress.c — choose what is read of a prompt from now on, layer by layer.
 *
 * A layer is done or not, and each is committed for itself: a prompt of many layers takes seconds,
 * and a failure in the middle must not undo what a client has paid for. All of the request is
 * checked before the first layer begins.
 */
#include "base/arena.h"
#include "base/cleanup.h"
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/region.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/context.h"

static int decode_layer(struct request *req, const Memd__CompressLayer *in,
                        const struct model *model, struct compress_args *ret_args,
                        struct error *err)
{
    if (in->layer >= model->layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer, model->layers);
    *ret_args = (struct compress_args){ .layer = in->layer, .tokens = in->tokens,
                                        .stop = request_stop, .stop_arg = req };
    if (in->q == NULL) return 0;
    struct message_shape shape = { .what = "q", .dims = 3,
                                   .shape = { MESSAGE_ANY, model->query_heads, model->head_dim } };
    int rc = region_tensor(req, in->q, &shape, &ret_args->q, err);
    if (rc < 0 || ret_args->q.shape[0] <= LIMIT_ATTEND_QUERIES) return rc;
    return error_set(err, MEMD_ELIMIT, "%zu queries, must be 1 … %u", ret_args->q.shape[0],
                     LIMIT_ATTEND_QUERIES);
}

static int decode(struct request *req, const Memd__CompressRequest *in, const struct model *model,
                  struct compress_args **ret_args, struct error *err)
{
    if (in->n_layers == 0 || in->n_layers > LIMIT_APPEND_LAYERS)
        return error_set(err, MEMD_ELIMIT, "%zu layers, must be 1 … %u", in->n_layers,
                         LIMIT_APPEND_LAYERS);
    struct compress_args *args = arena_calloc(&req->arena, in->n_layers, sizeof *args);
    if (args == NULL) return wire_no_memory(err);
    for (size_t i = 0; i < in->n_layers; i++) {
        int rc = decode_layer(req, in->layers[i], model, &args[i], err);
        if (rc < 0) return rc;
    }
    *ret_args = args;
    return 0;
}

/* Scratch of one layer, not of all of them. */
static int compress_layer(const struct request *req, struct context *context,
                          const struct compress_args *args, uint64_t *ret_kept, struct error *err)
{
    CLEANUP(arena_fini) struct arena scratch;
    arena_init(&scratch, req->arena.limit_bytes - req->arena.used_bytes);
    return context_compress(context, args, &scratch, ret_kept, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__CompressRequest *in = (const Memd__CompressRequest *)req->in;
    struct context *context = NULL;
    struct compress_args *args = NULL;
    int rc = catalog_pin(req->server->catalog, in->context_id, &req->arena, &context, err);
    if (rc == 0) rc = decode(req, in, context_model(context), &args, err);
    if (rc < 0) return rc;
    Memd__CompressReply reply = MEMD__COMPRESS_REPLY__INIT;
    reply.kept = arena_calloc(&req->arena, in->n_layers, sizeof *reply.kept);
    if (reply.kept == NULL) return wire_no_memory(err);
    for (; reply.n_kept < in->n_layers; reply.n_kept++) {
        rc = compress_layer(req, context, &args[reply.n_kept], &reply.kept[reply.n_kept], err);
        if (rc < 0) return rc;
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_compress = { .run = run, .ordered = true };

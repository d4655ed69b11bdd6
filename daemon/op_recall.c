/* SPDX-License-Identifier: Apache-2.0 */
/* op_recall.c — the latest queries of one layer again, beside the truth. The target that they were
 * to meet is told too, because "good enough" means nothing without it. */
#include <math.h>

#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/query.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"
#include "memory/methods/methods.h"

/* What the context's parameters ask for; NaN where its method has no such option. */
static int stored_target(const struct context_info *info, double *ret_target, struct error *err)
{
    const struct method *method = method_find(info->method);
    if (method == NULL)
        return error_set(err, MEMD_EUNSUPPORTED, "this build has no method '%s'", info->method);
    double values[OPTIONS_MAX];
    int rc = method_parse(method, info->parameters, info->parameter_count, values, err);
    if (rc == 0) *ret_target = method_option(method, values, "target_error", (double)NAN);
    return rc;
}

static int answer(struct request *req, const struct context_info *info,
                  const struct recall_args *args, const struct recall_layer *layer,
                  struct error *err)
{
    double target = (double)NAN;
    int rc = stored_target(info, &target, err);
    if (rc < 0) return rc;
    if (!isnan(target) && args->target_error >= 0.0) target = args->target_error;
    Memd__ErrorSummary summary = MEMD__ERROR_SUMMARY__INIT;
    summary.mean = layer->error_mean;
    summary.p50 = layer->error_p50;
    summary.p90 = layer->error_p90;
    summary.p99 = layer->error_p99;
    summary.max = layer->error_max;
    Memd__RecallReply reply = MEMD__RECALL_REPLY__INIT;
    reply.method = (char *)info->method;
    reply.target_error = target;
    reply.queries = layer->queries;
    if (layer->queries > 0) {
        reply.answers = layer->answers;
        reply.tokens = layer->tokens;
        reply.error = &summary;
        reply.lse_error_max = layer->lse_error_max;
        reply.predicted = layer->predicted;
        reply.predicted_mean = layer->predicted_mean;
        reply.ratio_median = layer->ratio_median;
        reply.within_twice = layer->within_twice;
        reply.level_mass = (double *)layer->mass;
        reply.level_bytes = (uint64_t *)layer->level_bytes;
        reply.n_level_mass = reply.n_level_bytes = INDEX_LEVELS;
        reply.bytes_read = layer->bytes_read;
        reply.bytes_exact = layer->bytes_exact;
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

static int run(struct request *req, struct error *err)
{
    const Memd__RecallRequest *in = (const Memd__RecallRequest *)req->in;
    struct catalog *catalog = req->server->catalog;
    struct query_wish wish = QUERY_WISH(in, MEMD__RECALL_REQUEST);
    struct recall_args args = { .context_id = in->context_id, .layer = in->layer,
                                .stop = request_stop, .stop_arg = req };
    int rc = query_decode_wish(&wish, &args.target_error, &args.max_bytes, err);
    struct context_info info;
    if (rc == 0) rc = catalog_stat(catalog, in->context_id, &req->arena, &info, err);
    if (rc < 0) return rc;
    if (in->layer >= info.model.layers)
        return error_set(err, MEMD_EINVAL, "layer %u, the model has %u", in->layer,
                         info.model.layers);
    struct recall_layer layer = { 0 };
    rc = catalog_recall(catalog, &args, &req->arena, &layer, err);
    return rc < 0 ? rc : answer(req, &info, &args, &layer, err);
}

const struct operation operation_recall = { .run = run };

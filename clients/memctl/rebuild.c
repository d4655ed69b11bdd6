/* SPDX-License-Identifier: Apache-2.0 */
/* rebuild.c — `memctl rebuild NAME… | --all`: delete what is derived from the rows, and see it
 * made again.
 *
 * One context after the other, so that only one is without its derived data at a time: as long as
 * it is, its queries read every row.
 */
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"
#include "clients/memctl/progress.h"

enum { PAUSE_MS = 100 };

struct rebuilding {
    struct ctl *ctl;
    struct json json;
    bool wait;
    uint64_t failed;
};

/* What became of one context. */
struct outcome {
    uint64_t deleted_segments, deleted_bytes;
    const struct memd_rebuild *built; /* the last look */
    double seconds;
};

static bool is_done(const struct memd_rebuild *built)
{
    return built->built_segments >= built->segments && built->built_indexes >= built->indexes;
}

static int delete_all(struct rebuilding *rebuilding, uint64_t id, struct outcome *outcome)
{
    struct ctl *ctl = rebuilding->ctl;
    struct memd_cursor cursor = { NULL, 0 };
    do {
        const struct memd_rebuild *next = NULL;
        int rc = memd_rebuild(ctl->client, id, cursor, &next, &ctl->err);
        if (rc < 0) return ctl_failed(ctl, rc, "rebuild");
        memd_free(outcome->built);
        outcome->built = next;
        outcome->deleted_segments += next->deleted_segments;
        outcome->deleted_bytes += next->deleted_bytes;
        cursor = next->next;
    } while (cursor.bytes > 0);
    return CTL_OK;
}

static int wait_built(struct rebuilding *rebuilding, const char *name, uint64_t id,
                      struct outcome *outcome)
{
    struct ctl *ctl = rebuilding->ctl;
    struct progress progress = progress_begin(name);
    int rc = CTL_OK;
    while (rc == CTL_OK && !is_done(outcome->built) && outcome->built->failure[0] == '\0') {
        const struct memd_rebuild *built = outcome->built;
        progress_show(&progress, built->built_segments + built->built_indexes,
                      built->segments + built->indexes, "part");
        poll(NULL, 0, PAUSE_MS);
        const struct memd_rebuild *next = NULL;
        int code = memd_built(ctl->client, id, &next, &ctl->err);
        if (code < 0) {
            progress_end(&progress);
            rc = ctl_failed(ctl, code, name);
        } else {
            memd_free(outcome->built);
            outcome->built = next;
        }
    }
    progress_end(&progress);
    return rc;
}

static void report(struct rebuilding *rebuilding, const char *name, const struct outcome *outcome)
{
    const struct memd_rebuild *built = outcome->built;
    bool failed = built->failure[0] != '\0' && !is_done(built);
    rebuilding->failed += failed;
    if (rebuilding->ctl->json) {
        struct json *json = &rebuilding->json;
        json_open(json, NULL, '{');
        json_text(json, "name", name);
        json_uint(json, "deleted_segments", outcome->deleted_segments);
        json_uint(json, "deleted_bytes", outcome->deleted_bytes);
        json_uint(json, "segments", built->segments);
        json_uint(json, "built_segments", built->built_segments);
        json_uint(json, "indexes", built->indexes);
        json_uint(json, "built_indexes", built->built_indexes);
        json_uint(json, "failures", built->failures);
        json_text(json, "failure", built->failure[0] == '\0' ? NULL : built->failure);
        json_real(json, "seconds", outcome->seconds);
        json_close(json);
        return;
    }
    FILE *out = rebuilding->ctl->out;
    fprintf(out, "%s: %s deleted; %s of %s", name,
            human_bytes(outcome->deleted_bytes).text, human_count(built->built_segments).text,
            human_counted(built->segments, "segment").text);
    if (built->indexes > 0)
        fprintf(out, ", %s of %s", human_count(built->built_indexes).text,
                human_counted(built->indexes, "index").text);
    fprintf(out, " built, %s%s%s\n", human_seconds(outcome->seconds).text,
            failed ? "; building failed: " : "", failed ? built->failure : "");
    fflush(out);
}

static int rebuild_one(struct rebuilding *rebuilding, const char *name, uint64_t id)
{
    struct outcome outcome = { .built = NULL };
    uint64_t begun_ns = clock_monotonic_ns();
    int rc = delete_all(rebuilding, id, &outcome);
    if (rc == CTL_OK && rebuilding->wait) rc = wait_built(rebuilding, name, id, &outcome);
    outcome.seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    if (rc == CTL_OK) report(rebuilding, name, &outcome);
    memd_free(outcome.built);
    return rc;
}

static int visit(void *arg, const struct memd_info *info)
{
    return rebuild_one(arg, info->name, info->id);
}

static int run(struct rebuilding *rebuilding, bool all)
{
    struct ctl *ctl = rebuilding->ctl;
    if (all) return ctl_each_context(ctl, NULL, visit, rebuilding);
    int rc = CTL_OK;
    for (size_t i = 0; rc == CTL_OK && i < ctl->options.argument_count; i++) {
        const char *name = ctl->options.arguments[i];
        struct memd_context context;
        rc = ctl_find(ctl, name, &context);
        if (rc == CTL_OK) rc = rebuild_one(rebuilding, name, context.id);
    }
    return rc;
}

int rebuild_main(struct ctl *ctl)
{
    bool all = options_value(&ctl->options, "all") != NULL;
    if (all == (ctl->options.argument_count > 0))
        return ctl_usage(ctl, "rebuild needs either names or --all");
    struct rebuilding rebuilding = { .ctl = ctl, .json = json_writer(ctl->out) };
    rebuilding.wait = options_value(&ctl->options, "no-wait") == NULL;
    int rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    if (ctl->json) {
        json_open(&rebuilding.json, NULL, '{');
        json_open(&rebuilding.json, "rebuilt", '[');
    }
    rc = run(&rebuilding, all);
    if (rc != CTL_OK) return rc;
    if (ctl->json) {
        json_close(&rebuilding.json);
        json_close(&rebuilding.json);
    }
    if (rebuilding.failed == 0) return CTL_OK;
    return ctl_error(ctl, "rebuild: %" PRIu64 " contexts are not whole; memd will try again",
                     rebuilding.failed);
}

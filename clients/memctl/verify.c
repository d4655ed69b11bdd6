/* SPDX-License-Identifier: Apache-2.0 */
/* verify.c — `memctl verify [NAME]`: step by step, so that the daemon serves others in between.
 * Findings are printed as they come; the exit code tells scripts that there were some. What the
 * daemon could not check (a method that its build lacks) is said at the end, and is no finding.
 * Where pages of the store itself went bad since the daemon started there is no way on: that is the
 * last finding. */
#include <inttypes.h>
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

struct verifying {
    struct ctl *ctl;
    struct json json;
    struct progress progress;
    uint64_t values, bytes, findings;
    char **unchecked; /* owned; shown at the end: they are no damage */
    size_t unchecked_count;
};

static void verifying_fini(struct verifying *verifying)
{
    for (size_t i = 0; i < verifying->unchecked_count; i++) free(verifying->unchecked[i]);
    free(verifying->unchecked);
}

static int remember(struct verifying *verifying, const struct memd_verify *step)
{
    if (step->unchecked_count == 0) return CTL_OK;
    size_t count = verifying->unchecked_count + step->unchecked_count;
    char **unchecked = realloc(verifying->unchecked, count * sizeof *unchecked);
    if (unchecked == NULL) return ctl_error(verifying->ctl, "out of memory");
    verifying->unchecked = unchecked;
    for (size_t i = 0; i < step->unchecked_count; i++) {
        char *copy = strdup(step->unchecked[i]);
        if (copy == NULL) return ctl_error(verifying->ctl, "out of memory");
        unchecked[verifying->unchecked_count++] = copy;
    }
    return CTL_OK;
}

static void report(struct verifying *verifying, const char *finding)
{
    if (verifying->ctl->json) {
        json_text(&verifying->json, NULL, finding);
    } else {
        fprintf(verifying->ctl->out, "damage: %s\n", finding);
    }
    verifying->findings++;
}

static void report_end(struct verifying *verifying, const struct memd_error *err)
{
    char finding[sizeof err->text + 64];
    snprintf(finding, sizeof finding, "%s; what is behind it was not looked at", err->text);
    progress_end(&verifying->progress);
    report(verifying, finding);
}

static void take_step(struct verifying *verifying, const struct memd_verify *step)
{
    verifying->values += step->values;
    verifying->bytes += step->bytes;
    if (step->finding_count > 0) progress_end(&verifying->progress);
    for (size_t i = 0; i < step->finding_count; i++) report(verifying, step->findings[i]);
    progress_show(&verifying->progress, verifying->values, step->values_total, "value");
}

static int walk(struct verifying *verifying, uint64_t context_id)
{
    struct ctl *ctl = verifying->ctl;
    CLEANUP(ctl_result_free) const struct memd_verify *step = NULL;
    struct memd_cursor cursor = { NULL, 0 };
    do {
        const struct memd_verify *next = NULL;
        int rc = memd_verify(ctl->client, context_id, cursor, &next, &ctl->err);
        if (rc == MEMD_ECORRUPT) {
            report_end(verifying, &ctl->err);
            break;
        }
        if (rc < 0) return ctl_failed(ctl, rc, "verify");
        memd_free(step);
        step = next;
        take_step(verifying, step);
        rc = remember(verifying, step);
        if (rc != CTL_OK) return rc;
        cursor = step->next;
    } while (cursor.bytes > 0);
    return CTL_OK;
}

static void conclude(struct verifying *verifying, double seconds)
{
    struct json *json = &verifying->json;
    if (verifying->ctl->json) {
        json_close(json);
        json_open(json, "unchecked", '[');
        for (size_t i = 0; i < verifying->unchecked_count; i++)
            json_text(json, NULL, verifying->unchecked[i]);
        json_close(json);
        json_bool(json, "sound", verifying->findings == 0);
        json_uint(json, "values", verifying->values);
        json_uint(json, "bytes", verifying->bytes);
        json_real(json, "seconds", seconds);
        json_close(json);
        return;
    }
    for (size_t i = 0; i < verifying->unchecked_count; i++)
        fprintf(verifying->ctl->out, "not checked: %s\n", verifying->unchecked[i]);
    fprintf(verifying->ctl->out, "%s, %s, %s: ", human_counted(verifying->values, "value").text,
            human_bytes(verifying->bytes).text, human_seconds(seconds).text);
    if (verifying->findings == 0) {
        fputs("no damage\n", verifying->ctl->out);
    } else {
        fprintf(verifying->ctl->out, "%s\n", human_counted(verifying->findings, "finding").text);
    }
}

int verify_main(struct ctl *ctl)
{
    struct memd_context context = { .id = 0 };
    int rc = ctl_connect(ctl);
    if (rc == CTL_OK && ctl->options.argument_count > 0) {
        rc = ctl_find(ctl, ctl->options.arguments[0], &context);
    }
    if (rc != CTL_OK) return rc;
    CLEANUP(verifying_fini)
    struct verifying verifying = { .ctl = ctl, .json = json_writer(ctl->out) };
    verifying.progress = progress_begin("verify");
    if (ctl->json) {
        json_open(&verifying.json, NULL, '{');
        json_open(&verifying.json, "findings", '[');
    }
    uint64_t begun_ns = clock_monotonic_ns();
    rc = walk(&verifying, context.id);
    progress_end(&verifying.progress);
    if (rc != CTL_OK) return rc;
    conclude(&verifying, (double)(clock_monotonic_ns() - begun_ns) / 1e9);
    return verifying.findings == 0 ? CTL_OK : CTL_UNHEALTHY;
}

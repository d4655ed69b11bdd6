/* SPDX-License-Identifier: Apache-2.0 */
/* compact.c — `memctl compact PATH`: the daemon writes, in its own working directory's eyes, so a
 * relative path is made absolute here, where the user meant it. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "clients/memctl/commands.h"
#include "clients/memctl/ctl.h"
#include "clients/memctl/human.h"
#include "clients/memctl/json.h"

static int absolute(struct ctl *ctl, const char *path, char ret_path[PATH_MAX])
{
    char here[PATH_MAX] = "";
    if (path[0] != '/' && getcwd(here, sizeof here) == NULL) {
        return ctl_error(ctl, "working directory: %s", strerror(errno));
    }
    int length = snprintf(ret_path, PATH_MAX, "%s%s%s", here, here[0] == '\0' ? "" : "/", path);
    if (length >= PATH_MAX) return ctl_error(ctl, "%s: path too long", path);
    return CTL_OK;
}

int compact_main(struct ctl *ctl)
{
    char path[PATH_MAX];
    uint64_t before = 0, after = 0;
    ctl->slow = true;
    int rc = absolute(ctl, ctl->options.arguments[0], path);
    if (rc == CTL_OK) rc = ctl_connect(ctl);
    if (rc != CTL_OK) return rc;
    uint64_t begun_ns = clock_monotonic_ns();
    rc = memd_compact(ctl->client, path, &before, &after, &ctl->err);
    if (rc < 0) return ctl_failed(ctl, rc, path);
    double seconds = (double)(clock_monotonic_ns() - begun_ns) / 1e9;
    if (ctl->json) {
        struct json json = json_writer(ctl->out);
        json_open(&json, NULL, '{');
        json_text(&json, "path", path);
        json_uint(&json, "bytes_before", before);
        json_uint(&json, "bytes_after", after);
        json_real(&json, "seconds", seconds);
        json_close(&json);
    } else {
        fprintf(ctl->out, "%s: %s, before %s, in %s\n", path, human_bytes(after).text,
                human_bytes(before).text, human_seconds(seconds).text);
    }
    return CTL_OK;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h — one line on standard error that replaces itself while long work runs; nothing when
 * standard error is no terminal or the work is short. */
#ifndef MEMD_CLIENTS_MEMCTL_PROGRESS_H
#define MEMD_CLIENTS_MEMCTL_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    const char *what;
    uint64_t begun_ns, shown_ns;
    bool terminal;
    bool shown;
};

struct progress progress_begin(const char *what);
/* At most ten times a second. total 0 = not known. `name`: of one, as in human_counted. */
void progress_show(struct progress *progress, uint64_t done, uint64_t total, const char *name);
/* Clear the line. */
void progress_end(struct progress *progress);

#endif

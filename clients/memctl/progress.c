/* SPDX-License-Identifier: Apache-2.0 */
/* progress.c — the line appears after half a second, so that short work never flickers. */
#include "clients/memctl/progress.h"

#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "clients/memctl/human.h"

enum { EVERY_NS = 100000000, FIRST_NS = 500000000 };

struct progress progress_begin(const char *what)
{
    return (struct progress){
        .what = what, .begun_ns = clock_monotonic_ns(), .terminal = isatty(STDERR_FILENO) == 1
    };
}

void progress_show(struct progress *progress, uint64_t done, uint64_t total, const char *name)
{
    uint64_t now_ns = clock_monotonic_ns();
    uint64_t since_ns = now_ns - progress->begun_ns;
    if (!progress->terminal || since_ns < FIRST_NS) return;
    if (progress->shown && now_ns - progress->shown_ns < EVERY_NS) return;
    progress->shown = true;
    progress->shown_ns = now_ns;
    double seconds = (double)since_ns / 1e9;
    fprintf(stderr, "\r\033[K%s: ", progress->what);
    if (total < done || total == 0) {
        fputs(human_counted(done, name).text, stderr);
    } else {
        double share = (double)done / (double)total;
        fprintf(stderr, "%s of %s (%.0f %%)", human_count(done).text,
                human_counted(total, name).text, share * 100.0);
        if (share > 0.01) {
            fprintf(stderr, ", %s left", human_seconds(seconds / share - seconds).text);
        }
    }
    fflush(stderr);
}

void progress_end(struct progress *progress)
{
    if (progress->shown) fputs("\r\033[K", stderr);
    progress->shown = false;
}

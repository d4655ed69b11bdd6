/* SPDX-License-Identifier: Apache-2.0 */
/* builder.c — the builder's thread and its queue: which context is looked at, when, and what
 * becomes of failures. What is done then stands in build_planes.c, build_tables.c, build_index.c,
 * build_folds.c and rebuild.c.
 *
 * One thread, and it does not split its work over the pool: a worker that codes a head (some
 * milliseconds) is a worker that no request has. It runs at a lower priority where the system
 * allows it, and offers its processor every 500 µs, since a request would wait milliseconds for
 * that otherwise (base/yield_timer.h).
 *
 * A context in the queue is there because it was woken (something new) or because something failed
 * and is to be tried again at `retry_ns`. Both may be.
 */
#include "memory/builder.h"

#include <assert.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/yield_timer.h"
#include "memory/build.h"

#define SECOND_NS UINT64_C(1000000000)
#define WAIT_NS (SECOND_NS / 20)
#define AGAIN_NS (SECOND_NS / 10)
#define YIELD_NS (SECOND_NS / 2000)
enum { BACK_OFF_MAX = 6, NICE = 10 }; /* 2^6 seconds */

struct command {
    uint64_t context_id;
    struct rebuild_step *step;
    int rc;
    bool done;
    struct error err;
    struct list_link link;
};

/* locked by catalog.lock */
struct builder {
    struct catalog *catalog;
    pthread_t thread;
    pthread_cond_t work, changed;
    struct list_link queue;    /* contexts by build_link */
    struct list_link commands; /* struct command */
    uint64_t current;          /* the context in work; 0 = none */
    struct yield_timer timer;  /* of the thread alone */
    atomic_bool stopping;
    bool running;
};

void builder_add(struct builder *builder, struct context *context)
{
    const struct method *method = context->method;
    bool builds = method->planes || method->fold != NULL || method_builds(method);
    if (context->record == NULL || !builds) return;
    if (!context->build.woken) atomic_fetch_add(&builder->catalog->build_waiting, 1);
    context->build.woken = true;
    if (!list_linked(&context->build_link)) list_append(&builder->queue, &context->build_link);
    pthread_cond_signal(&builder->work);
}

void builder_wake(struct builder *builder, struct context *context)
{
    pthread_mutex_lock(&builder->catalog->lock);
    if (map_get(&builder->catalog->residents, context->id) == context)
        builder_add(builder, context);
    pthread_mutex_unlock(&builder->catalog->lock);
}

/* Not woken any more. With the lock held. */
static void settle(struct builder *builder, struct context *context)
{
    if (context->build.woken) atomic_fetch_sub(&builder->catalog->build_waiting, 1);
    context->build.woken = false;
}

void builder_remove(struct builder *builder, struct context *context)
{
    settle(builder, context);
    list_remove(&context->build_link);
    pthread_cond_broadcast(&builder->changed);
}

static bool is_due(const struct context *context, uint64_t now_ns)
{
    return context->build.woken || context->build.retry_ns <= now_ns;
}

bool builder_is_busy(struct builder *builder, const struct context *context)
{
    if (!builder->running) return false;
    if (builder->current == context->id) return true;
    if (!list_linked(&context->build_link) || context->dropping) return false;
    /* It waits for its turn, be it soon (`again`); a failure is tried again much later. */
    return is_due(context, clock_monotonic_ns() + AGAIN_NS);
}

void builder_wait(struct builder *builder)
{
    clock_cond_wait(&builder->changed, &builder->catalog->lock, clock_monotonic_ns() + WAIT_NS);
}

/* The first context that is due, out of the queue and pinned; else NULL and when one will be. */
static struct context *take_due(struct builder *builder, bool *ret_retry, uint64_t *ret_due_ns)
{
    uint64_t now_ns = clock_monotonic_ns(), due_ns = UINT64_MAX;
    LIST_FOR(link, &builder->queue)
    {
        struct context *context = LIST_ENTRY(link, struct context, build_link);
        if (context->dropping) continue; /* who drops it has seen its last pin */
        if (!is_due(context, now_ns)) {
            if (context->build.retry_ns < due_ns) due_ns = context->build.retry_ns;
            continue;
        }
        *ret_retry = context->build.retry_ns <= now_ns;
        settle(builder, context);
        list_remove(&context->build_link);
        context->pins++;
        context->builder_pins++;
        return context;
    }
    *ret_due_ns = due_ns;
    return NULL;
}

static uint64_t back_off_ns(unsigned attempts)
{
    return SECOND_NS << (attempts < BACK_OFF_MAX ? attempts : BACK_OFF_MAX);
}

/* What comes of a pass. With the lock held. */
static void finish(struct builder *builder, const struct build *build, bool retry)
{
    struct context *context = map_get(&builder->catalog->residents, build->context_id);
    if (context == NULL || context->dropping) return;
    struct build_state *state = &context->build;
    uint64_t now_ns = clock_monotonic_ns();
    state->failures += build->failed;
    if (build->failed > 0) {
        state->last_failure = build->failure;
        if (retry || state->retry_ns == UINT64_MAX)
            state->retry_ns = now_ns + back_off_ns(state->attempts++);
    } else if (retry) {
        state->attempts = 0;
        state->last_failure = 0;
        state->retry_ns = UINT64_MAX;
    }
    if (build->again && state->retry_ns > now_ns + AGAIN_NS) state->retry_ns = now_ns + AGAIN_NS;
    if (state->retry_ns != UINT64_MAX && !list_linked(&context->build_link))
        list_append(&builder->queue, &context->build_link);
}

/* With the lock held, but not during the work. */
static void work_on(struct builder *builder, struct context *context, bool retry)
{
    struct build build = { .builder = builder,
                           .catalog = builder->catalog,
                           .context_id = context->id,
                           .context = context };
    builder->current = context->id;
    pthread_mutex_unlock(&builder->catalog->lock);
    yield_timer_start(&builder->timer);
    uint64_t start_ns = clock_monotonic_ns();
    const struct method *method = context->method;
    if (method->planes) build_planes(&build, retry);
    if (method->planes && build.context != NULL) build_tables(&build);
    if (method_builds(method) && build.context != NULL) build_indexes(&build);
    if (method->fold != NULL && build.context != NULL) build_folds(&build);
    build_unpin(&build);
    CATALOG_COUNT(builder->catalog, build_ns_total, clock_monotonic_ns() - start_ns);
    CATALOG_COUNT(builder->catalog, build_failures_total, build.failed);
    yield_timer_stop(&builder->timer);
    pthread_mutex_lock(&builder->catalog->lock);
    builder->current = 0;
    finish(builder, &build, retry);
    pthread_cond_broadcast(&builder->changed);
}

/* With the lock held, but not during the work. */
static void obey(struct builder *builder, struct command *command)
{
    pthread_mutex_unlock(&builder->catalog->lock);
    yield_timer_start(&builder->timer);
    command->rc = build_delete(builder->catalog, command->context_id, command->step, &command->err);
    yield_timer_stop(&builder->timer);
    pthread_mutex_lock(&builder->catalog->lock);
    command->done = true;
    pthread_cond_broadcast(&builder->changed);
}

static void *builder_main(void *arg)
{
    struct builder *builder = arg;
    setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICE); /* of this thread, on Linux */
    yield_timer_open(&builder->timer, YIELD_NS);
    pthread_mutex_lock(&builder->catalog->lock);
    while (!builder->stopping) {
        struct list_link *link = list_take_first(&builder->commands);
        uint64_t due_ns = UINT64_MAX;
        bool retry = false;
        struct context *context = link == NULL ? take_due(builder, &retry, &due_ns) : NULL;
        if (link != NULL)
            obey(builder, LIST_ENTRY(link, struct command, link));
        else if (context != NULL)
            work_on(builder, context, retry);
        else if (due_ns == UINT64_MAX)
            pthread_cond_wait(&builder->work, &builder->catalog->lock);
        else
            clock_cond_wait(&builder->work, &builder->catalog->lock, due_ns);
    }
    builder->running = false;
    pthread_cond_broadcast(&builder->changed);
    pthread_mutex_unlock(&builder->catalog->lock);
    yield_timer_close(&builder->timer);
    return NULL;
}

bool build_pin(struct build *build)
{
    assert(build->context == NULL);
    struct catalog *catalog = build->catalog;
    pthread_mutex_lock(&catalog->lock);
    struct context *context = map_get(&catalog->residents, build->context_id);
    if (context != NULL && !context->dropping) {
        context->pins++;
        context->builder_pins++;
        build->context = context;
    }
    pthread_mutex_unlock(&catalog->lock);
    return build->context != NULL;
}

void build_unpin(struct build *build)
{
    struct context *context = build->context;
    if (context == NULL) return;
    build->context = NULL;
    pthread_mutex_lock(&build->catalog->lock);
    assert(context->pins > 0 && context->builder_pins > 0);
    context->builder_pins--;
    if (--context->pins == 0) pthread_cond_broadcast(&build->catalog->unpinned);
    pthread_mutex_unlock(&build->catalog->lock);
}

bool build_must_stop(const struct build *build)
{
    return build->builder->stopping || (build->context != NULL && build->context->dropping);
}

bool build_must_yield(const struct build *build)
{
    return build_must_stop(build) || build->context->wish_alone > 0;
}

bool build_failed(struct build *build, int code)
{
    if (code == MEMD_ECANCELLED) {
        build->again = true;
        return true;
    }
    build->failed++;
    build->failure = code;
    return code != MEMD_ECORRUPT;
}

int builder_open(struct catalog *catalog, struct builder **ret_builder, struct error *err)
{
    struct builder *builder = calloc(1, sizeof *builder);
    if (builder == NULL) return error_set(err, MEMD_ENOMEM, "no memory for the builder");
    clock_cond_init(&builder->work);
    clock_cond_init(&builder->changed);
    list_init(&builder->queue);
    list_init(&builder->commands);
    builder->catalog = catalog;
    builder->running = true;
    sigset_t all, before; /* signals belong to the loop thread */
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int rc = pthread_create(&builder->thread, NULL, builder_main, builder);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0) {
        builder->running = false;
        builder_close(builder);
        return error_set(err, MEMD_EIO, "cannot start the builder thread: error %d", rc);
    }
    *ret_builder = builder;
    return 0;
}

void builder_stop(struct builder *builder)
{
    if (builder == NULL || builder->stopping) return;
    pthread_mutex_lock(&builder->catalog->lock);
    builder->stopping = true;
    pthread_cond_signal(&builder->work);
    pthread_mutex_unlock(&builder->catalog->lock);
    pthread_join(builder->thread, NULL);
}

void builder_close(struct builder *builder)
{
    if (builder == NULL) return;
    assert(!builder->running && list_empty(&builder->queue) && list_empty(&builder->commands));
    pthread_cond_destroy(&builder->work);
    pthread_cond_destroy(&builder->changed);
    free(builder);
}

int builder_rebuild(struct builder *builder, uint64_t context_id, struct rebuild_step *step,
                    struct error *err)
{
    struct command command = { .context_id = context_id, .step = step };
    pthread_mutex_lock(&builder->catalog->lock);
    assert(builder->running);
    list_append(&builder->commands, &command.link);
    pthread_cond_signal(&builder->work);
    while (!command.done) pthread_cond_wait(&builder->changed, &builder->catalog->lock);
    pthread_mutex_unlock(&builder->catalog->lock);
    return command.rc < 0 ? error_set(err, command.rc, "%s", command.err.text) : 0;
}

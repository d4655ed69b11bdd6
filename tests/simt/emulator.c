/* SPDX-License-Identifier: Apache-2.0 */
/* emulator.c — one block at a time, every thread a fiber.
 *
 * A fiber runs until it waits (barrier, shuffle) or ends; then the scheduler gives the next one its
 * turn, in the order that the test chose (take_round). A barrier *counts arrivals* and opens when
 * all threads have arrived: had it been "give up your turn once", warps that differ in their number
 * of shuffles would run out of step. A shuffle has two slots per lane that alternate, since a fast
 * lane gives its next value before a slow one has fetched the last.
 *
 * Fibers start by ucontext and switch by _setjmp and _longjmp: swapcontext asks the kernel for the
 * signal mask each time, which made everything twenty times slower. The latter is called behind the
 * backs of those who replace it: AddressSanitizer's clears a whole stack and calls the kernel
 * twice, for the frames that a jump may have left, and the C library's own with checks refuses to
 * go down a stack. Here no frame is left. A fiber that is through with its thread waits for the
 * next block. Sanitizers are told about each switch (sanitized.h).
 */
#include "tests/simt/emulator.h"

#include <assert.h>
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "attention/cuda/simt.h"
#include "tests/random.h"
#include "tests/simt/sanitized.h"

enum {
    THREADS_MAX = 1024, /* of a block, as on every device */
    WARPS_MAX = THREADS_MAX / SIMT_WARP,
    STACK_BYTES = 128 << 10,
    GUARD_BYTES = 256, /* around shared memory */
    GUARD = 0xA5,
    SHARED_MAX = 96 << 10,
    LINES_MAX = 64, /* of barriers, as far as they are remembered */
};

enum wait { WAIT_NOTHING, WAIT_BARRIER, WAIT_SHUFFLE, WAIT_ENDED };

struct fiber {
    jmp_buf point;
    struct stack stack;
    bool begun;
    enum wait wait;
    unsigned barriers, shuffles; /* met so far in this block */
};

/* The value that each lane gave to its shuffle number n stands in slot n % 2. */
struct warp {
    uint32_t slots[2][SIMT_WARP];
    unsigned arrived[2];
    unsigned fetched[2];
};

static struct machine {
    pthread_mutex_t lock;
    enum simt_order order;
    uint64_t random;
    uint64_t launches;
    int left_out; /* line of a barrier */
    int lines[LINES_MAX];
    unsigned line_count;
    bool failed;
    char failure[160];

    void (*thread)(const void *args);
    const void *args;
    unsigned threads, current;
    unsigned arrived; /* at the barrier */
    struct fiber fibers[THREADS_MAX];
    struct warp warps[WARPS_MAX];
    unsigned turns[THREADS_MAX];
    unsigned char *stacks; /* (THREADS_MAX, STACK_BYTES) */
    ucontext_t start;
    jmp_buf scheduler;
    void (*jump)(jmp_buf to, int result); /* _longjmp of the C library */
    struct stack scheduler_stack;
    _Alignas(64) unsigned char shared[GUARD_BYTES + SHARED_MAX + GUARD_BYTES];
} machine = { .lock = PTHREAD_MUTEX_INITIALIZER };

struct simt_here simt_here;

static void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void fail(const char *format, ...)
{
    if (machine.failed) return; /* the first one is the cause */
    va_list list;
    va_start(list, format);
    vsnprintf(machine.failure, sizeof machine.failure, format, list);
    va_end(list);
    machine.failed = true;
}

bool simt_is_emulated(void)
{
    return true;
}

void simt_set_order(enum simt_order order, uint64_t seed)
{
    pthread_mutex_lock(&machine.lock);
    machine.order = order;
    machine.random = seed;
    pthread_mutex_unlock(&machine.lock);
}

void simt_leave_out_barrier(int line)
{
    pthread_mutex_lock(&machine.lock);
    machine.left_out = line;
    pthread_mutex_unlock(&machine.lock);
}

unsigned simt_take_barriers(int *ret_lines, unsigned most)
{
    pthread_mutex_lock(&machine.lock);
    unsigned count = machine.line_count < most ? machine.line_count : most;
    memcpy(ret_lines, machine.lines, count * sizeof *ret_lines);
    machine.line_count = 0;
    pthread_mutex_unlock(&machine.lock);
    return count;
}

const char *simt_take_failure(void)
{
    if (!machine.failed) return NULL;
    machine.failed = false;
    return machine.failure;
}

uint64_t simt_launches(void)
{
    pthread_mutex_lock(&machine.lock);
    uint64_t launches = machine.launches;
    pthread_mutex_unlock(&machine.lock);
    return launches;
}

/* ---- in a fiber ---- */

static void give_up_turn(struct fiber *fiber)
{
    if (_setjmp(fiber->point) == 0) {
        stack_leave(&fiber->stack, &machine.scheduler_stack);
        machine.jump(machine.scheduler, 1);
    }
    stack_arrive(&fiber->stack, &machine.scheduler_stack);
}

static void remember(int line)
{
    for (unsigned i = 0; i < machine.line_count; i++)
        if (machine.lines[i] == line) return;
    if (machine.line_count < LINES_MAX) machine.lines[machine.line_count++] = line;
}

void simt_barrier(int line)
{
    struct fiber *fiber = &machine.fibers[machine.current];
    remember(line);
    if (line == machine.left_out) return;
    fiber->barriers++;
    fiber->wait = WAIT_BARRIER;
    machine.arrived++;
    give_up_turn(fiber);
}

uint32_t simt_exchange(uint32_t value, unsigned lane_mask)
{
    struct fiber *fiber = &machine.fibers[machine.current];
    struct warp *warp = &machine.warps[machine.current / SIMT_WARP];
    unsigned lane = machine.current % SIMT_WARP, slot = fiber->shuffles++ % 2;
    assert(lane_mask < SIMT_WARP);
    warp->slots[slot][lane] = value;
    warp->arrived[slot]++;
    fiber->wait = WAIT_SHUFFLE;
    give_up_turn(fiber);
    uint32_t other = warp->slots[slot][lane ^ lane_mask];
    if (++warp->fetched[slot] == SIMT_WARP) warp->arrived[slot] = warp->fetched[slot] = 0;
    return other;
}

static void fiber_main(void)
{
    struct fiber *fiber = &machine.fibers[machine.current];
    stack_arrive(&fiber->stack, &machine.scheduler_stack);
    for (;;) {
        machine.thread(machine.args);
        fiber->wait = WAIT_ENDED;
        give_up_turn(fiber);
    }
}

/* ---- the scheduler ---- */

static void begin_fiber(struct fiber *fiber)
{
    ucontext_t *context = &machine.start; /* no local: this frame is left, and never ends */
    getcontext(context);
    context->uc_stack.ss_sp = (void *)fiber->stack.bottom;
    context->uc_stack.ss_size = fiber->stack.bytes;
    context->uc_link = NULL;
    makecontext(context, fiber_main, 0);
    setcontext(context);
}

static void continue_fiber(unsigned idx)
{
    struct fiber *fiber = &machine.fibers[idx];
    machine.current = idx;
    simt_here.thread.x = idx;
    fiber->wait = WAIT_NOTHING;
    if (!fiber->begun) stack_begins(&fiber->stack);
    if (_setjmp(machine.scheduler) == 0) {
        stack_leave(&machine.scheduler_stack, &fiber->stack);
        if (fiber->begun) machine.jump(fiber->point, 1);
        fiber->begun = true;
        begin_fiber(fiber);
    }
    stack_arrive(&machine.scheduler_stack, &fiber->stack);
}

static bool may_continue(unsigned idx)
{
    const struct fiber *fiber = &machine.fibers[idx];
    const struct warp *warp = &machine.warps[idx / SIMT_WARP];
    switch (fiber->wait) {
    case WAIT_NOTHING: return true;
    case WAIT_SHUFFLE: return warp->arrived[(fiber->shuffles - 1) % 2] == SIMT_WARP;
    default: return false; /* a barrier opens for all at once; ended */
    }
}

static void order_turns(void)
{
    unsigned count = machine.threads;
    for (unsigned i = 0; i < count; i++)
        machine.turns[i] = machine.order == SIMT_DOWN ? count - 1 - i : i;
    if (machine.order != SIMT_SHUFFLED) return;
    for (unsigned i = count; i > 1; i--) {
        unsigned other = (unsigned)random_below(&machine.random, i);
        unsigned kept = machine.turns[i - 1];
        machine.turns[i - 1] = machine.turns[other];
        machine.turns[other] = kept;
    }
}

static unsigned count_waiting(enum wait wait)
{
    unsigned count = 0;
    for (unsigned i = 0; i < machine.threads; i++) count += machine.fibers[i].wait == wait;
    return count;
}

/* All threads have arrived at the barrier: they may go on. */
static void open_barrier(void)
{
    machine.arrived = 0;
    for (unsigned i = 0; i < machine.threads; i++) machine.fibers[i].wait = WAIT_NOTHING;
}

/* Everybody among turns[first … end-1] who can, once. */
static bool take_turns(unsigned first, unsigned end)
{
    bool moved = false;
    for (unsigned i = first; i < end; i++) {
        if (!may_continue(machine.turns[i])) continue;
        continue_fiber(machine.turns[i]);
        moved = true;
    }
    return moved;
}

/* Up and down a warp goes as far as it can before the next one begins: a device may be as unfair,
 * and a fair one would hide what a missing barrier does. Shuffled, all threads go side by side. */
static bool take_round(void)
{
    bool moved = false;
    order_turns();
    if (machine.order == SIMT_SHUFFLED) return take_turns(0, machine.threads);
    for (unsigned first = 0; first < machine.threads; first += SIMT_WARP)
        while (take_turns(first, first + SIMT_WARP)) moved = true;
    return moved;
}

static void run_fibers(void)
{
    for (;;) {
        bool moved = take_round();
        if (machine.arrived == machine.threads) open_barrier();
        else if (!moved) break;
    }
    unsigned barrier = count_waiting(WAIT_BARRIER), shuffle = count_waiting(WAIT_SHUFFLE);
    if (barrier + shuffle > 0)
        fail("block %u: %u threads wait at a barrier and %u in a shuffle that the other %u never "
             "reach", simt_here.block.x, barrier, shuffle, machine.threads - barrier - shuffle);
    for (unsigned i = 1; i < machine.threads; i++)
        if (machine.fibers[i].barriers != machine.fibers[0].barriers)
            fail("block %u: thread %u met %u barriers, thread 0 %u", simt_here.block.x, i,
                 machine.fibers[i].barriers, machine.fibers[0].barriers);
}

static void check_guards(size_t shared_bytes)
{
    const unsigned char *before = machine.shared, *after = before + GUARD_BYTES + shared_bytes;
    for (size_t i = 0; i < GUARD_BYTES; i++)
        if (before[i] != GUARD || after[i] != GUARD)
            fail("block %u: a write %s the %zu bytes of shared memory", simt_here.block.x,
                 before[i] != GUARD ? "before" : "behind", shared_bytes);
}

/* Some wait for what does not come: all begin anew. */
static void end_fibers(void)
{
    for (unsigned i = 0; i < machine.threads; i++) {
        struct fiber *fiber = &machine.fibers[i];
        if (fiber->begun) stack_ends(&fiber->stack);
        fiber->begun = false;
    }
}

static void run_block(unsigned block, size_t shared_bytes)
{
    simt_here.block.x = block;
    memset(machine.shared, GUARD, 2 * GUARD_BYTES + shared_bytes);
    memset(machine.shared + GUARD_BYTES, 0xFF, shared_bytes); /* NaN */
    memset(machine.warps, 0, sizeof machine.warps);
    machine.arrived = 0;
    for (unsigned i = 0; i < machine.threads; i++) {
        struct fiber *fiber = &machine.fibers[i];
        fiber->wait = WAIT_NOTHING;
        fiber->barriers = fiber->shuffles = 0;
    }
    run_fibers();
    check_guards(shared_bytes);
    if (machine.failed) end_fibers();
}

static void begin(void)
{
    void *library = dlopen("libc.so.6", RTLD_LAZY | RTLD_NOLOAD);
    assert(library != NULL);
    *(void **)&machine.jump = dlsym(library, "_longjmp");
    machine.stacks = malloc((size_t)THREADS_MAX * STACK_BYTES);
    assert(machine.jump != NULL && machine.stacks != NULL);
    for (size_t i = 0; i < THREADS_MAX; i++)
        machine.fibers[i].stack = (struct stack){ .bottom = machine.stacks + i * STACK_BYTES,
                                                  .bytes = STACK_BYTES };
}

int simt_launch(void (*thread)(const void *args), const void *args, unsigned grid, unsigned block,
                size_t shared_bytes)
{
    assert(block > 0 && block <= THREADS_MAX && block % SIMT_WARP == 0);
    assert(shared_bytes <= SHARED_MAX);
    pthread_mutex_lock(&machine.lock);
    machine.launches++;
    machine.failed = false;
    if (machine.stacks == NULL) begin();
    stack_of_thread(&machine.scheduler_stack);
    machine.thread = thread;
    machine.args = args;
    machine.threads = block;
    simt_here = (struct simt_here){ .block_dim = { block }, .grid_dim = { grid },
                                    .shared = machine.shared + GUARD_BYTES };
    for (unsigned i = 0; i < grid && !machine.failed; i++) run_block(i, shared_bytes);
    int rc = machine.failed ? MEMD_EDEVICE : 0;
    pthread_mutex_unlock(&machine.lock);
    return rc;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* on_device.c — the tests of the emulated kernels, on whatever device a plugin opens.
 *
 * A test hands out pointers to its heap and to its stack. So that a device reads them where they
 * are, both are made of pinned memory: malloc and its like are wrapped (--wrap) and hand out one
 * area of it, and the test's main (renamed when it is compiled) runs on a stack in there. Launchers
 * go through the plugin's table and wait, the emulator's knobs do nothing. The tests themselves are
 * the same text.
 *
 * Run with the fake device in every build without sanitizers, which shows that every pointer is one
 * that a device could read; on a GPU by tests/simt/on_device.sh.
 *
 * Environment   MEMD_DEVICE_PLUGIN the plugin: memd-cuda.so, or memd-fake.so
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include "attention/cuda/accelerator.h"
#include "base/error.h"
#include "tests/simt/emulator.h"

enum { AREA_BYTES = 768 << 20, STACK_BYTES = 8 << 20, ALIGN = 256, CLASSES = 32 };

/* What stands in front of every piece: its size class. */
struct piece {
    size_t class;
    struct piece *next; /* while it is free */
};

static struct {
    const struct device_table *table;
    struct device *device;
    unsigned char *area;
    size_t used;
    struct piece *free[CLASSES]; /* pieces of ALIGN << class bytes, of which ALIGN are the head's */
    ucontext_t outside, inside;
    int status;
} host;

int test_main(void);
void *__wrap_malloc(size_t bytes);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_aligned_alloc(size_t align, size_t bytes);
void __wrap_free(void *memory);
void *__real_malloc(size_t bytes);
void *__real_calloc(size_t count, size_t size);
void *__real_aligned_alloc(size_t align, size_t bytes);
void __real_free(void *memory);

/* ---- memory ---- */

void *__wrap_malloc(size_t bytes)
{
    size_t class = 0;
    if (host.area == NULL) return __real_malloc(bytes);
    while (((size_t)ALIGN << class) < bytes + ALIGN) class++;
    struct piece *piece = host.free[class];
    if (piece != NULL) {
        host.free[class] = piece->next;
    } else {
        if (host.used + ((size_t)ALIGN << class) > AREA_BYTES) return NULL;
        piece = (struct piece *)(void *)(host.area + host.used);
        host.used += (size_t)ALIGN << class;
        piece->class = class;
    }
    return (unsigned char *)piece + ALIGN;
}

void *__wrap_calloc(size_t count, size_t size)
{
    if (host.area == NULL) return __real_calloc(count, size);
    void *memory = __wrap_malloc(count * size);
    return memory == NULL ? NULL : memset(memory, 0, count * size);
}

void *__wrap_aligned_alloc(size_t align, size_t bytes)
{
    if (host.area == NULL) return __real_aligned_alloc(align, bytes);
    return align <= ALIGN ? __wrap_malloc(bytes) : NULL;
}

void __wrap_free(void *memory)
{
    unsigned char *at = memory;
    if (host.area == NULL || at < host.area || at >= host.area + AREA_BYTES) {
        __real_free(memory);
        return;
    }
    struct piece *piece = (struct piece *)(void *)(at - ALIGN);
    piece->next = host.free[piece->class];
    host.free[piece->class] = piece;
}

/* ---- launches ---- */

static int waited(int rc)
{
    struct error err = { 0 };
    if (rc == 0) rc = host.table->finish(host.device, DEVICE_COMPUTE, &err);
    if (rc < 0) printf("the device says: %s\n", err.text);
    return rc;
}

int partial_launch(const struct partial_launch *args, void *stream)
{
    (void)stream;
    return waited(host.table->partial(host.device, DEVICE_COMPUTE, args));
}

int gather_partial_launch(const struct gather_launch *args, void *stream)
{
    (void)stream;
    return waited(host.table->gather(host.device, DEVICE_COMPUTE, args));
}

int merge_launch(const struct merge_launch *args, void *stream)
{
    (void)stream;
    return waited(host.table->merge(host.device, DEVICE_COMPUTE, args));
}

int rope_launch(const struct rope_launch *args, void *stream)
{
    (void)stream;
    return waited(host.table->rope(host.device, DEVICE_COMPUTE, args));
}

#define STAGE(name, stage)                                                          \
    int name(const struct planes_launch *args, void *stream)                        \
    {                                                                               \
        (void)stream;                                                               \
        return waited(host.table->planes(host.device, DEVICE_COMPUTE, stage, args)); \
    }
STAGE(planes_score_launch, PLANES_SCORE)
STAGE(planes_weigh_launch, PLANES_WEIGH)
STAGE(planes_judge_launch, PLANES_JUDGE)
STAGE(planes_choose_launch, PLANES_CHOOSE)
STAGE(planes_pick_launch, PLANES_PICK)
STAGE(planes_decode_launch, PLANES_DECODE)

/* ---- the emulator that is not there ---- */

bool simt_is_emulated(void)
{
    return false;
}

void simt_set_order(enum simt_order order, uint64_t seed)
{
    (void)order;
    (void)seed;
}

void simt_leave_out_barrier(int line)
{
    (void)line;
}

unsigned simt_take_barriers(int *ret_lines, unsigned most)
{
    (void)ret_lines;
    (void)most;
    return 0;
}

const char *simt_take_failure(void)
{
    return NULL;
}

/* ---- the test's main ---- */

static void run_test(void)
{
    host.status = test_main();
    fflush(stdout);
}

static int run(const char *plugin, struct error *err)
{
    struct device_info info;
    void *area = NULL;
    int rc = accelerator_load_plugin(plugin, &host.table, err);
    if (rc == 0) rc = host.table->open(-1, &host.device, err);
    if (rc == 0) rc = host.table->describe(host.device, &info, err);
    if (rc == 0) rc = host.table->alloc_host(host.device, AREA_BYTES, &area, err);
    if (rc < 0) return rc;
    printf("on %s\n", info.name);
    getcontext(&host.inside);
    host.inside.uc_stack.ss_sp = area;
    host.inside.uc_stack.ss_size = STACK_BYTES;
    host.inside.uc_link = &host.outside;
    makecontext(&host.inside, run_test, 0);
    host.used = STACK_BYTES + (ALIGN - (uintptr_t)area % ALIGN) % ALIGN;
    host.area = area; /* from here on memory is of it */
    swapcontext(&host.outside, &host.inside);
    host.area = NULL;
    host.table->free_host(host.device, area);
    host.table->close(host.device);
    return 0;
}

int main(void)
{
    const char *plugin = getenv("MEMD_DEVICE_PLUGIN");
    struct error err = { 0 };
    if (plugin == NULL) {
        fprintf(stderr, "MEMD_DEVICE_PLUGIN is not set\n");
        return 2;
    }
    if (run(plugin, &err) == 0) return host.status;
    printf("%s\n", err.text);
    return 3;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* fake_device.c — queues per stream, run as late as they may be.
 *
 * An operation keeps a copy of its arguments, as a launch does, but not of the memory they point
 * to. `await` remembers which record it waits for; running it runs the other stream up to there.
 *
 * Also the whole of the plugin memd-fake.so, with which the daemon's own tests run.
 */
#include "tests/simt/fake_device.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/tensor.h"
#include "index/kernels/planes_launch.h"
#include "tests/simt/emulator.h"

enum { OPERATIONS_MAX = 4096, PIECES_MAX = 1024, WATCHED_MAX = 512 };
#define FAKE_MEMORY (UINT64_C(1) << 30)

struct operation {
    enum fake_call_kind kind; /* one that is queued */
    union {
        struct {
            void *to;
            const void *from;
            size_t bytes;
        } copy;
        struct {
            unsigned event;
            uint64_t number; /* of the record, of this event */
        } event;
        struct partial_launch partial;
        struct gather_launch gather;
        struct merge_launch merge;
        struct rope_launch rope;
        struct {
            enum planes_stage stage;
            struct planes_launch args;
        } planes;
    } as;
};

enum owner { OURS, PINNED, IMPORTED };

struct piece {
    unsigned char *at;
    size_t bytes;
    bool on_device;
    enum owner owner;
};

struct device {
    struct operation *queues[DEVICE_STREAMS]; /* (OPERATIONS_MAX) */
    size_t queued[DEVICE_STREAMS], run[DEVICE_STREAMS];
    uint64_t recorded[DEVICE_EVENTS], passed[DEVICE_EVENTS];
    struct piece pieces[PIECES_MAX];
    bool failed; /* a kernel, or a pointer */
    char failure[160];
};

static struct fake_device_counts counts;
static uint64_t lose_after, memory_limit = FAKE_MEMORY;
static bool lost;

/* Calls that are watched, and the one that is to fail. */
static struct fake_call watched[WATCHED_MAX];
static size_t watched_count;
static bool watching;
static uint64_t calls, fail_at;
static bool fail_on;

void fake_device_lose(uint64_t finishes)
{
    lose_after = finishes;
    lost = false;
}

void fake_device_limit(uint64_t bytes)
{
    memory_limit = bytes;
}

void fake_device_fail(uint64_t call, bool go_on)
{
    calls = 0;
    fail_at = call;
    fail_on = go_on;
}

bool fake_device_has_failed(void)
{
    return fail_at > 0 && calls >= fail_at;
}

void fake_device_watch(bool on)
{
    watching = on;
    if (on) watched_count = 0;
}

size_t fake_device_watched(const struct fake_call **ret_calls)
{
    *ret_calls = watched;
    return watched_count;
}

struct fake_device_counts fake_device_counts(void)
{
    return counts;
}

/* Every call of the table says so here first. 0, or that it fails. */
static int called(struct fake_call call)
{
    if (watching) {
        assert(watched_count < WATCHED_MAX);
        watched[watched_count++] = call;
    }
    if (call.kind == FAKE_FREE) return 0;
    calls++;
    if (fail_at == 0 || (fail_on ? calls < fail_at : calls != fail_at)) return 0;
    return call.kind == FAKE_ALLOC ? MEMD_ENOMEM : MEMD_EDEVICE;
}

static int called_on(enum fake_call_kind kind, enum device_stream stream)
{
    return called((struct fake_call){ .kind = kind, .stream = stream });
}

/* ---- memory ---- */

static struct piece *piece_of(struct device *device, const void *at)
{
    for (size_t i = 0; i < PIECES_MAX; i++) {
        struct piece *piece = &device->pieces[i];
        const unsigned char *byte = at;
        if (piece->at != NULL && byte >= piece->at && byte < piece->at + piece->bytes)
            return piece;
    }
    return NULL;
}

static int take_memory(struct device *device, size_t bytes, bool on_device, void **ret_memory)
{
    size_t i = 0;
    while (i < PIECES_MAX && device->pieces[i].at != NULL) i++;
    assert(i < PIECES_MAX);
    unsigned char *memory = malloc(bytes);
    if (memory == NULL) return MEMD_ENOMEM;
    memset(memory, 0xFF, bytes < 1 << 20 ? bytes : 1 << 20); /* NaN, as far as it costs nothing */
    device->pieces[i] = (struct piece){ memory, bytes, on_device, OURS };
    counts.allocs++;
    *ret_memory = memory;
    return 0;
}

static void give_back(struct device *device, void *memory)
{
    struct piece *piece = piece_of(device, memory);
    assert(piece != NULL && piece->at == memory && piece->owner == OURS);
    called((struct fake_call){ .kind = FAKE_FREE });
    if (piece->on_device) counts.bytes -= piece->bytes;
    free(piece->at);
    piece->at = NULL;
}

static int fake_alloc(struct device *device, size_t bytes, void **ret_memory, struct error *err)
{
    int rc = called((struct fake_call){ .kind = FAKE_ALLOC });
    if (rc < 0) return error_set(err, rc, "the fake device has no memory, as it was told");
    if (counts.bytes + bytes > memory_limit)
        return error_set(err, MEMD_ENOMEM, "the fake device has no %zu bytes left", bytes);
    rc = take_memory(device, bytes, true, ret_memory);
    if (rc == 0) counts.bytes += bytes;
    return rc;
}

static int fake_alloc_host(struct device *device, size_t bytes, void **ret_memory,
                           struct error *err)
{
    int rc = called((struct fake_call){ .kind = FAKE_ALLOC });
    if (rc < 0) return error_set(err, rc, "the fake host has no memory, as it was told");
    return take_memory(device, bytes, false, ret_memory);
}

/* ---- memory of others ---- */

static int add_piece(struct device *device, const struct piece *piece, struct error *err)
{
    struct piece *place = NULL;
    for (size_t i = 0; i < PIECES_MAX; i++) {
        struct piece *other = &device->pieces[i];
        if (other->at == NULL) place = other;
        else if (piece->at < other->at + other->bytes && other->at < piece->at + piece->bytes)
            return error_set(err, MEMD_EINVAL, "the fake device has that memory already");
    }
    if (place == NULL) return error_set(err, MEMD_ENOMEM, "the fake device has no place left");
    *place = *piece;
    return 0;
}

static int fake_pin(struct device *device, void *at, size_t bytes, struct error *err)
{
    int rc = add_piece(device, &(struct piece){ at, bytes, false, PINNED }, err);
    if (rc == 0) counts.pinned_bytes += bytes;
    return rc;
}

static void fake_unpin(struct device *device, void *at)
{
    struct piece *piece = piece_of(device, at);
    assert(piece != NULL && piece->at == at && piece->owner == PINNED);
    counts.pinned_bytes -= piece->bytes;
    piece->at = NULL;
}

/* Its memory is the host's, so what others export is a memfd; a handle is "pid descriptor". */
static int open_export(const struct device_export *from)
{
    if (from->kind == DEVICE_EXPORT_DESCRIPTOR) return fcntl(from->descriptor, F_DUPFD_CLOEXEC, 0);
    char text[DEVICE_HANDLE_BYTES + 1] = "", path[64];
    unsigned pid = 0, descriptor = 0;
    memcpy(text, from->handle, DEVICE_HANDLE_BYTES);
    if (sscanf(text, "%u %u", &pid, &descriptor) != 2) return -1;
    snprintf(path, sizeof path, "/proc/%u/fd/%u", pid, descriptor);
    return open(path, O_RDWR | O_CLOEXEC);
}

static int fake_import(struct device *device, const struct device_export *from, void **ret_memory,
                       struct error *err)
{
    CLEANUP(close_fd) int fd = open_export(from);
    struct stat info = { .st_size = 0 };
    if (fd < 0 || fstat(fd, &info) < 0 || !S_ISREG(info.st_mode) ||
        (uint64_t)info.st_size < from->bytes)
        return error_set(err, MEMD_EINVAL, "no memory of the fake device, or not %zu bytes",
                         from->bytes);
    void *at = mmap(NULL, from->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) return error_set(err, MEMD_EINVAL, "mmap: %s", strerror(errno));
    int rc = add_piece(device, &(struct piece){ at, from->bytes, true, IMPORTED }, err);
    if (rc < 0) munmap(at, from->bytes);
    counts.imports += rc == 0;
    *ret_memory = rc == 0 ? at : NULL;
    return rc;
}

static void fake_release(struct device *device, void *memory)
{
    struct piece *piece = piece_of(device, memory);
    assert(piece->at == memory && piece->owner == IMPORTED);
    munmap(piece->at, piece->bytes);
    piece->at = NULL;
    counts.imports--;
}

/* ---- running ---- */

static void need(struct device *device, const void *at, size_t bytes, const char *what)
{
    const struct piece *piece = bytes == 0 ? NULL : piece_of(device, at);
    const unsigned char *end = (const unsigned char *)at + bytes;
    if (bytes == 0 || (piece != NULL && end <= piece->at + piece->bytes) || device->failed) return;
    snprintf(device->failure, sizeof device->failure, "%s: %zu bytes that no device can reach",
             what, bytes);
    device->failed = true;
}

static void need_rows(struct device *device, const struct launch_rows *rows, uint32_t count,
                      uint32_t head_dim)
{
    if (count == 0) return;
    need(device, rows->k, (size_t)(count - 1) * rows->k_stride_bytes +
                              head_dim * dtype_bytes(rows->k_dtype), "keys");
    need(device, rows->v, (size_t)(count - 1) * rows->v_stride_bytes +
                              head_dim * dtype_bytes(rows->v_dtype), "values");
}

static void need_rope(struct device *device, const struct launch_rope *rope)
{
    if (rope->turns != NULL)
        need(device, rope->turns, rope->rotary_dims / 2 * sizeof *rope->turns, "rope");
}

static int run_partial(struct device *device, const struct partial_launch *args)
{
    need(device, args->runs, args->count * sizeof *args->runs, "runs");
    for (uint32_t i = 0; i < args->count && !device->failed; i++) {
        const struct partial_run *run = &args->runs[i];
        need_rows(device, &run->rows, run->count, args->head_dim);
        need(device, args->q + (size_t)run->query * args->head_dim,
             (size_t)run->queries * args->head_dim * sizeof *args->q, "queries");
        need(device, args->o + (size_t)run->result * args->head_dim,
             (size_t)run->queries * args->head_dim * sizeof *args->o, "pool");
        need(device, args->limits + run->query, run->queries * sizeof *args->limits, "limits");
    }
    return device->failed ? MEMD_EDEVICE : partial_launch(args, NULL);
}

static int run_gather(struct device *device, const struct gather_launch *args)
{
    need(device, args->runs, args->count * sizeof *args->runs, "runs");
    need_rope(device, &args->rope);
    for (uint32_t i = 0; i < args->count && !device->failed; i++) {
        const struct gather_run *run = &args->runs[i];
        need(device, run->ids, run->count * sizeof *run->ids, "ids");
        need(device, run->positions, run->count * sizeof *run->positions, "positions");
        for (uint32_t row = 0; row < run->count && !device->failed; row++) {
            struct launch_rows rows = run->rows;
            rows.k = (const unsigned char *)rows.k + (size_t)run->ids[row] * rows.k_stride_bytes;
            rows.v = (const unsigned char *)rows.v + (size_t)run->ids[row] * rows.v_stride_bytes;
            need_rows(device, &rows, 1, args->head_dim);
        }
    }
    return device->failed ? MEMD_EDEVICE : gather_partial_launch(args, NULL);
}

static int run_merge(struct device *device, const struct merge_launch *args)
{
    need(device, args->begin, (args->count + 1) * sizeof *args->begin, "lists");
    need(device, args->parts, args->begin[args->count] * sizeof *args->parts, "parts");
    need(device, args->ret_o, (size_t)args->count * args->head_dim * sizeof *args->o, "answer");
    need(device, args->ret_lse, args->count * sizeof *args->lse, "answer");
    return device->failed ? MEMD_EDEVICE : merge_launch(args, NULL);
}

static int run_rope(struct device *device, const struct rope_launch *args)
{
    need_rope(device, &args->rope);
    need(device, args->rows, (size_t)args->count * args->stride_bytes, "rows");
    need(device, args->positions, args->count * sizeof *args->positions, "positions");
    need(device, args->out, (size_t)args->count * args->out_stride * sizeof *args->out, "rows");
    return device->failed ? MEMD_EDEVICE : rope_launch(args, NULL);
}

static int run_planes(struct device *device, enum planes_stage stage,
                      const struct planes_launch *args)
{
    static int (*const stages[PLANES_STAGES])(const struct planes_launch *args, void *stream) = {
        planes_score_launch,  planes_weigh_launch, planes_judge_launch,
        planes_choose_launch, planes_pick_launch,  planes_decode_launch,
    };
    size_t runs = args->count, scores = runs * LAUNCH_QUERIES;
    need(device, args->runs, runs * sizeof *args->runs, "runs");
    need(device, args->signs, 256, "signs");
    need(device, args->q, (size_t)args->queries * args->head_dim * sizeof *args->q, "queries");
    need(device, args->scores, scores * PLANES_TOKENS * sizeof *args->scores, "scores");
    need(device, args->left, scores * sizeof *args->left, "errors");
    need(device, args->levels, runs * PLANES_TOKENS, "levels");
    need(device, args->exact_ids, runs * PLANES_TOKENS * sizeof *args->exact_ids, "lists");
    for (size_t i = 0; i < runs && !device->failed; i++)
        need(device, args->runs[i].hi, args->layout.hi_bytes, "planes");
    return device->failed ? MEMD_EDEVICE : stages[stage](args, NULL);
}

static int run_copy(struct device *device, const struct operation *operation)
{
    need(device, operation->as.copy.to, operation->as.copy.bytes, "copy to");
    need(device, operation->as.copy.from, operation->as.copy.bytes, "copy from");
    if (device->failed) return MEMD_EDEVICE;
    memcpy(operation->as.copy.to, operation->as.copy.from, operation->as.copy.bytes);
    counts.copied_bytes += operation->as.copy.bytes;
    return 0;
}

/* One that is no AWAIT. */
static void run_one(struct device *device, const struct operation *operation)
{
    int rc = 0;
    switch (operation->kind) {
    case FAKE_COPY: rc = run_copy(device, operation); break;
    case FAKE_RECORD: device->passed[operation->as.event.event] = operation->as.event.number; break;
    case FAKE_PARTIAL: rc = run_partial(device, &operation->as.partial); break;
    case FAKE_GATHER: rc = run_gather(device, &operation->as.gather); break;
    case FAKE_MERGE: rc = run_merge(device, &operation->as.merge); break;
    case FAKE_ROPE: rc = run_rope(device, &operation->as.rope); break;
    case FAKE_PLANES:
        rc = run_planes(device, operation->as.planes.stage, &operation->as.planes.args);
        break;
    default: assert(operation->kind == FAKE_AWAIT); break;
    }
    if (rc == 0 || device->failed) return;
    const char *why = simt_take_failure();
    snprintf(device->failure, sizeof device->failure, "%s", why == NULL ? "a kernel" : why);
    device->failed = true;
}

/* The other stream up to the record that is awaited. What it waits for itself has been there:
 * streams here do not wait in circles. */
static void run_until(struct device *device, enum device_stream stream,
                      const struct operation *await)
{
    unsigned event = await->as.event.event;
    while (device->passed[event] < await->as.event.number) {
        assert(device->run[stream] < device->queued[stream]);
        const struct operation *operation = &device->queues[stream][device->run[stream]++];
        if (operation->kind == FAKE_AWAIT)
            assert(device->passed[operation->as.event.event] >= operation->as.event.number);
        else
            run_one(device, operation);
    }
}

static int fake_finish(struct device *device, enum device_stream stream, struct error *err)
{
    int rc = called_on(FAKE_FINISH, stream);
    counts.finishes++;
    if (rc < 0) return error_set(err, rc, "the fake device fell off the bus, as it was told");
    if (lose_after > 0 && --lose_after == 0) lost = true;
    if (lost) return error_set(err, MEMD_EDEVICE, "the fake device fell off the bus");
    while (device->run[stream] < device->queued[stream]) {
        const struct operation *operation = &device->queues[stream][device->run[stream]++];
        if (operation->kind == FAKE_AWAIT)
            run_until(device, stream == DEVICE_COMPUTE ? DEVICE_TRANSFER : DEVICE_COMPUTE,
                      operation);
        else
            run_one(device, operation);
    }
    for (int i = 0; i < DEVICE_STREAMS; i++)
        if (device->run[i] == device->queued[i]) device->run[i] = device->queued[i] = 0;
    return device->failed ? error_set(err, MEMD_EDEVICE, "%s", device->failure) : 0;
}

/* ---- queueing ---- */

static struct operation *queue(struct device *device, enum device_stream stream,
                               enum fake_call_kind kind)
{
    assert(device->queued[stream] < OPERATIONS_MAX);
    struct operation *operation = &device->queues[stream][device->queued[stream]++];
    *operation = (struct operation){ .kind = kind };
    return operation;
}

static int fake_copy(struct device *device, enum device_stream stream, void *to, const void *from,
                     size_t bytes)
{
    bool reached = piece_of(device, to) != NULL && piece_of(device, from) != NULL;
    int rc = called((struct fake_call){ .kind = FAKE_COPY, .stream = stream, .bytes = bytes,
                                        .pageable = !reached });
    if (rc < 0) return rc;
    struct operation *operation = queue(device, stream, FAKE_COPY);
    operation->as.copy.to = to;
    operation->as.copy.from = from;
    operation->as.copy.bytes = bytes;
    counts.copies++;
    return 0;
}

static int fake_record(struct device *device, unsigned event, enum device_stream stream)
{
    int rc = called((struct fake_call){ .kind = FAKE_RECORD, .stream = stream, .event = event });
    if (rc < 0) return rc;
    struct operation *operation = queue(device, stream, FAKE_RECORD);
    operation->as.event.event = event;
    operation->as.event.number = ++device->recorded[event];
    return 0;
}

static int fake_await(struct device *device, unsigned event, enum device_stream stream)
{
    int rc = called((struct fake_call){ .kind = FAKE_AWAIT, .stream = stream, .event = event });
    if (rc < 0) return rc;
    struct operation *operation = queue(device, stream, FAKE_AWAIT);
    operation->as.event.event = event;
    operation->as.event.number = device->recorded[event];
    return 0;
}

static int fake_partial(struct device *device, enum device_stream stream,
                        const struct partial_launch *args)
{
    int rc = called_on(FAKE_PARTIAL, stream);
    if (rc < 0) return rc;
    queue(device, stream, FAKE_PARTIAL)->as.partial = *args;
    counts.launches++;
    return 0;
}

static int fake_gather(struct device *device, enum device_stream stream,
                       const struct gather_launch *args)
{
    int rc = called_on(FAKE_GATHER, stream);
    if (rc < 0) return rc;
    queue(device, stream, FAKE_GATHER)->as.gather = *args;
    counts.launches++;
    return 0;
}

static int fake_merge(struct device *device, enum device_stream stream,
                      const struct merge_launch *args)
{
    int rc = called_on(FAKE_MERGE, stream);
    if (rc < 0) return rc;
    queue(device, stream, FAKE_MERGE)->as.merge = *args;
    counts.launches++;
    return 0;
}

static int fake_rope(struct device *device, enum device_stream stream,
                     const struct rope_launch *args)
{
    int rc = called_on(FAKE_ROPE, stream);
    if (rc < 0) return rc;
    queue(device, stream, FAKE_ROPE)->as.rope = *args;
    counts.launches++;
    return 0;
}

static int fake_planes(struct device *device, enum device_stream stream, enum planes_stage stage,
                       const struct planes_launch *args)
{
    int rc = called((struct fake_call){ .kind = FAKE_PLANES, .stream = stream, .event = stage });
    if (rc < 0) return rc;
    struct operation *operation = queue(device, stream, FAKE_PLANES);
    operation->as.planes.stage = stage;
    operation->as.planes.args = *args;
    counts.launches++;
    return 0;
}

/* ---- the table ---- */

static void fake_close(struct device *device)
{
    if (device == NULL) return;
    for (size_t i = 0; i < PIECES_MAX; i++) assert(device->pieces[i].at == NULL);
    for (int i = 0; i < DEVICE_STREAMS; i++) free(device->queues[i]);
    free(device);
    counts.devices--;
}

static int fake_open(int ordinal, struct device **ret_device, struct error *err)
{
    if (ordinal > 0)
        return error_set(err, MEMD_EUNSUPPORTED, "there is one fake device, not %d", ordinal);
    int rc = called((struct fake_call){ .kind = FAKE_OPEN });
    if (rc < 0) return error_set(err, rc, "the fake device does not open, as it was told");
    struct device *device = calloc(1, sizeof *device);
    const char *finishes = getenv("MEMD_FAKE_LOSE"); /* in a daemon */
    if (finishes != NULL) fake_device_lose(strtoull(finishes, NULL, 10));
    assert(device != NULL);
    for (int i = 0; i < DEVICE_STREAMS; i++) {
        device->queues[i] = malloc(OPERATIONS_MAX * sizeof *device->queues[i]);
        assert(device->queues[i] != NULL);
    }
    counts.devices++;
    *ret_device = device;
    return 0;
}

static int fake_describe(struct device *device, struct device_info *ret_info, struct error *err)
{
    (void)device;
    int rc = called((struct fake_call){ .kind = FAKE_OPEN });
    if (rc < 0) return error_set(err, rc, "the fake device says nothing, as it was told");
    *ret_info = (struct device_info){ .name = "fake device", .memory_bytes = memory_limit,
                                      .free_bytes = memory_limit - counts.bytes };
    return 0;
}

const struct device_table fake_device_table = {
    .version = DEVICE_TABLE_VERSION,
    .name = "fake",
    .open = fake_open,
    .close = fake_close,
    .describe = fake_describe,
    .alloc = fake_alloc,
    .free = give_back,
    .alloc_host = fake_alloc_host,
    .free_host = give_back,
    .copy = fake_copy,
    .record = fake_record,
    .await = fake_await,
    .finish = fake_finish,
    .partial = fake_partial,
    .gather = fake_gather,
    .merge = fake_merge,
    .rope = fake_rope,
    .planes = fake_planes,
    .pin = fake_pin,
    .unpin = fake_unpin,
    .import = fake_import,
    .release = fake_release,
};

__attribute__((visibility("default"))) const struct device_table *memd_device_table(void);
const struct device_table *memd_device_table(void)
{
    return &fake_device_table;
}

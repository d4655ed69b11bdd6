/* SPDX-License-Identifier: Apache-2.0 */
/* device.cu — the table of device.h over the CUDA runtime: the one host file with CUDA headers, and
 * with it all of memd-cuda.so but the kernels.
 *
 * Thin on purpose: what can be decided without a GPU (budgets, windows, steps, falling back) is
 * decided above the table, where it can be tested. Streams do not synchronise with the legacy
 * default stream; events carry no time, which makes them cheap. Nothing here allocates between
 * `open` and `close` but the alloc functions, and nothing but `finish` waits, so that steps can be
 * captured into a graph.
 *
 * Not yet run on a GPU: it is compiled and linked by every build that has nvcc.
 */
#include <cuda_runtime.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "attention/cuda/device.h"
#include "attention/cuda/import.h"
#include "base/error.h"
}

enum { CAPABILITY_LEAST = 75 }; /* major * 10 + minor: what CUDA 13 still compiles for */

struct device {
    int ordinal;
    cudaStream_t streams[DEVICE_STREAMS];
    cudaEvent_t events[DEVICE_EVENTS];
    struct import *imports;
};

static int failed(cudaError_t status, const char *what, struct error *err)
{
    if (status == cudaSuccess) return 0;
    int code = status == cudaErrorMemoryAllocation ? MEMD_ENOMEM : MEMD_EDEVICE;
    (void)cudaGetLastError(); /* what is not sticky must not be taken for the next call's */
    return error_set(err, code, "%s: %s", what, cudaGetErrorString(status));
}

/* The current device is a property of the thread, and requests come on any. */
static int enter(struct device *device)
{
    return failed(cudaSetDevice(device->ordinal), "cudaSetDevice", NULL);
}

static int capability(int ordinal)
{
    int major = 0, minor = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess)
        return 0;
    return major * 10 + minor;
}

static size_t free_memory(int ordinal)
{
    size_t free_bytes = 0, all = 0;
    if (cudaSetDevice(ordinal) != cudaSuccess) return 0;
    if (cudaMemGetInfo(&free_bytes, &all) != cudaSuccess) return 0;
    return free_bytes;
}

static int choose(int ordinal, int *ret_ordinal, struct error *err)
{
    int count = 0, best = -1;
    size_t most = 0;
    cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        return error_set(err, MEMD_EUNSUPPORTED, "no usable CUDA device: %s",
                         status == cudaSuccess ? "there is none" : cudaGetErrorString(status));
    }
    for (int i = 0; i < count; i++) {
        if ((ordinal >= 0 && i != ordinal) || capability(i) < CAPABILITY_LEAST) continue;
        size_t bytes = free_memory(i);
        if (bytes <= most) continue;
        most = bytes;
        best = i;
    }
    if (best < 0)
        return error_set(err, MEMD_EUNSUPPORTED, "none of %d CUDA devices is usable: compute "
                         "capability %d.%d is needed%s", count, CAPABILITY_LEAST / 10,
                         CAPABILITY_LEAST % 10,
                         ordinal < 0 ? "" : " (one of them was asked for)");
    *ret_ordinal = best;
    return 0;
}

static void device_close(struct device *device)
{
    if (device == NULL) return;
    if (enter(device) == 0) {
        for (int i = 0; i < DEVICE_STREAMS; i++) {
            if (device->streams[i] == NULL) continue;
            (void)cudaStreamSynchronize(device->streams[i]);
            (void)cudaStreamDestroy(device->streams[i]);
        }
        for (int i = 0; i < DEVICE_EVENTS; i++)
            if (device->events[i] != NULL) (void)cudaEventDestroy(device->events[i]);
    }
    free(device);
}

static int device_open(int ordinal, struct device **ret_device, struct error *err)
{
    int chosen = 0, rc = choose(ordinal, &chosen, err);
    if (rc < 0) return rc;
    struct device *device = (struct device *)calloc(1, sizeof *device);
    if (device == NULL) return error_set(err, MEMD_ENOMEM, "no memory for a device");
    device->ordinal = chosen;
    rc = failed(cudaSetDevice(chosen), "cudaSetDevice", err);
    for (int i = 0; rc == 0 && i < DEVICE_STREAMS; i++)
        rc = failed(cudaStreamCreateWithFlags(&device->streams[i], cudaStreamNonBlocking),
                    "cudaStreamCreate", err);
    for (int i = 0; rc == 0 && i < DEVICE_EVENTS; i++)
        rc = failed(cudaEventCreateWithFlags(&device->events[i], cudaEventDisableTiming),
                    "cudaEventCreate", err);
    if (rc < 0) device_close(device);
    else *ret_device = device;
    return rc;
}

static int device_describe(struct device *device, struct device_info *ret_info, struct error *err)
{
    struct cudaDeviceProp properties;
    int rc = enter(device);
    if (rc == 0)
        rc = failed(cudaGetDeviceProperties(&properties, device->ordinal),
                    "cudaGetDeviceProperties", err);
    if (rc < 0) return rc;
    memset(ret_info, 0, sizeof *ret_info);
    snprintf(ret_info->name, sizeof ret_info->name, "%.70s (sm_%d%d)", properties.name,
             properties.major, properties.minor);
    ret_info->ordinal = device->ordinal;
    ret_info->memory_bytes = properties.totalGlobalMem;
    ret_info->free_bytes = free_memory(device->ordinal);
    return 0;
}

static int device_alloc(struct device *device, size_t bytes, void **ret_memory, struct error *err)
{
    int rc = enter(device);
    return rc < 0 ? rc : failed(cudaMalloc(ret_memory, bytes), "cudaMalloc", err);
}

static void device_free(struct device *device, void *memory)
{
    if (enter(device) == 0) (void)cudaFree(memory);
}

static int device_alloc_host(struct device *device, size_t bytes, void **ret_memory,
                             struct error *err)
{
    int rc = enter(device);
    unsigned flags = cudaHostAllocMapped | cudaHostAllocPortable;
    return rc < 0 ? rc : failed(cudaHostAlloc(ret_memory, bytes, flags), "cudaHostAlloc", err);
}

static void device_free_host(struct device *device, void *memory)
{
    if (enter(device) == 0) (void)cudaFreeHost(memory);
}

static int device_copy(struct device *device, enum device_stream stream, void *to, const void *from,
                       size_t bytes)
{
    int rc = enter(device);
    if (rc < 0 || bytes == 0) return rc;
    return failed(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, device->streams[stream]),
                  "cudaMemcpyAsync", NULL);
}

static int device_record(struct device *device, unsigned event, enum device_stream stream)
{
    int rc = enter(device);
    return rc < 0 ? rc : failed(cudaEventRecord(device->events[event], device->streams[stream]),
                                "cudaEventRecord", NULL);
}

static int device_await(struct device *device, unsigned event, enum device_stream stream)
{
    int rc = enter(device);
    return rc < 0 ? rc : failed(cudaStreamWaitEvent(device->streams[stream],
                                                    device->events[event], 0),
                                "cudaStreamWaitEvent", NULL);
}

static int device_finish(struct device *device, enum device_stream stream, struct error *err)
{
    int rc = enter(device);
    if (rc < 0) return error_set(err, rc, "the CUDA device is gone");
    return failed(cudaStreamSynchronize(device->streams[stream]), "cudaStreamSynchronize", err);
}

static int device_partial(struct device *device, enum device_stream stream,
                          const struct partial_launch *args)
{
    int rc = enter(device);
    return rc < 0 ? rc : partial_launch(args, device->streams[stream]);
}

static int device_gather(struct device *device, enum device_stream stream,
                         const struct gather_launch *args)
{
    int rc = enter(device);
    return rc < 0 ? rc : gather_partial_launch(args, device->streams[stream]);
}

static int device_merge(struct device *device, enum device_stream stream,
                        const struct merge_launch *args)
{
    int rc = enter(device);
    return rc < 0 ? rc : merge_launch(args, device->streams[stream]);
}

static int device_rope(struct device *device, enum device_stream stream,
                       const struct rope_launch *args)
{
    int rc = enter(device);
    return rc < 0 ? rc : rope_launch(args, device->streams[stream]);
}

static int device_planes(struct device *device, enum device_stream stream, enum planes_stage stage,
                         const struct planes_launch *args)
{
    static int (*const stages[PLANES_STAGES])(const struct planes_launch *args, void *stream) = {
        planes_score_launch,  planes_weigh_launch, planes_judge_launch,
        planes_choose_launch, planes_pick_launch,  planes_decode_launch,
    };
    int rc = enter(device);
    return rc < 0 ? rc : stages[stage](args, device->streams[stream]);
}

static int device_pin(struct device *device, void *at, size_t bytes, struct error *err)
{
    int rc = enter(device);
    return rc < 0 ? rc : import_pin(device->ordinal, at, bytes, err);
}

static void device_unpin(struct device *device, void *at)
{
    if (enter(device) == 0) import_unpin(at);
}

static int device_import(struct device *device, const struct device_export *from,
                         void **ret_memory, struct error *err)
{
    int rc = enter(device);
    if (rc < 0) return error_set(err, rc, "the CUDA device is gone");
    return import_open(device->ordinal, from, &device->imports, ret_memory, err);
}

static void device_release(struct device *device, void *memory)
{
    if (enter(device) == 0) import_close(&device->imports, memory);
}

static const struct device_table table = {
    DEVICE_TABLE_VERSION, "cuda",         device_open,       device_close,   device_describe,
    device_alloc,         device_free,    device_alloc_host, device_free_host, device_copy,
    device_record,        device_await,   device_finish,     device_partial, device_gather,
    device_merge,         device_rope,    device_planes,     device_pin,     device_unpin,
    device_import,        device_release,
};

extern "C" __attribute__((visibility("default"))) const struct device_table *memd_device_table(void)
{
    return &table;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* device.h — an accelerator as a table of functions: memory, two streams, events, kernels.
 *
 * The table is all that memd knows of a device. The one of CUDA (device.cu) lives in the plugin
 * memd-cuda.so, the only thing that is linked with NVIDIA's runtime, so that one package serves
 * machines with and without a GPU. tests/simt/fake_device.c has another, whose memory is the host's
 * and whose kernels are the emulated ones: so everything above this line is tested without a GPU.
 *
 * Order    what is queued on one stream happens in that order; between streams an event is recorded
 *          on one and awaited by the other. Nothing here waits but `finish`.
 * Memory   `alloc` is the device's; `alloc_host` is pinned memory of the host that kernels can read
 *          and write at the same address, and copies do not have to stage. Neither is called on the
 *          way of a query (accelerator.h).
 * Threads  any; the caller sees to it that calls for one device do not overlap
 * Errors   0, MEMD_ENOMEM (the device goes on), or MEMD_EDEVICE. A launch or copy that fails on the
 *          device is known at the next `finish`. After MEMD_EDEVICE from `finish` a device is lost:
 *          the errors of CUDA that get there are sticky
 * Tests    tests/simt/test_accelerator.c; device.cu itself needs a GPU
 */
#ifndef MEMD_ATTENTION_CUDA_DEVICE_H
#define MEMD_ATTENTION_CUDA_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "attention/cuda/launch.h"

struct device;
struct error;

/* Raised whenever the table or a launch struct changes: a plugin of another build is refused. */
enum { DEVICE_TABLE_VERSION = 3 };

enum device_stream { DEVICE_COMPUTE, DEVICE_TRANSFER, DEVICE_STREAMS };
enum { DEVICE_EVENTS = 8 };
enum { DEVICE_NAME_BYTES = 96 };

struct device_info {
    char name[DEVICE_NAME_BYTES]; /* "NVIDIA H200 (sm_90)" */
    int ordinal;
    uint64_t memory_bytes, free_bytes;
};

/* Memory of the device that another process allocated: how it was exported. */
enum device_export_kind {
    DEVICE_EXPORT_DESCRIPTOR, /* a POSIX descriptor of virtual memory management (cuMemExport…) */
    DEVICE_EXPORT_HANDLE,     /* cudaIpcMemHandle_t */
};
enum { DEVICE_HANDLE_BYTES = 64 };
struct device_export {
    enum device_export_kind kind;
    int descriptor; /* the caller's */
    unsigned char handle[DEVICE_HANDLE_BYTES];
    size_t bytes;
};

struct device_table {
    uint32_t version;
    const char *name; /* "cuda" */
    /* ordinal < 0: the one with most free memory. MEMD_EUNSUPPORTED with a sentence when there is
     * none that can be used (no driver, too old, none). */
    int (*open)(int ordinal, struct device **ret_device, struct error *err);
    void (*close)(struct device *device); /* waits for its streams, if it can */
    int (*describe)(struct device *device, struct device_info *ret_info, struct error *err);

    int (*alloc)(struct device *device, size_t bytes, void **ret_memory, struct error *err);
    void (*free)(struct device *device, void *memory);
    int (*alloc_host)(struct device *device, size_t bytes, void **ret_memory, struct error *err);
    void (*free_host)(struct device *device, void *memory);

    int (*copy)(struct device *device, enum device_stream stream, void *to, const void *from,
                size_t bytes);
    int (*record)(struct device *device, unsigned event, enum device_stream stream);
    int (*await)(struct device *device, unsigned event, enum device_stream stream);
    int (*finish)(struct device *device, enum device_stream stream, struct error *err);

    int (*partial)(struct device *device, enum device_stream stream,
                   const struct partial_launch *args);
    int (*gather)(struct device *device, enum device_stream stream,
                  const struct gather_launch *args);
    int (*merge)(struct device *device, enum device_stream stream, const struct merge_launch *args);
    int (*rope)(struct device *device, enum device_stream stream, const struct rope_launch *args);
    int (*planes)(struct device *device, enum device_stream stream, enum planes_stage stage,
                  const struct planes_launch *args);

    /* Memory of the host that was mapped by the caller, whole pages: from now on as if it came from
     * alloc_host. MEMD_EINVAL when it cannot be. */
    int (*pin)(struct device *device, void *at, size_t bytes, struct error *err);
    void (*unpin)(struct device *device, void *at);
    /* Both need no stream, and wait for none. MEMD_EINVAL: it is no memory of this device, or there
     * are fewer bytes. */
    int (*import)(struct device *device, const struct device_export *from, void **ret_memory,
                  struct error *err);
    void (*release)(struct device *device, void *memory);
};

/* What a plugin exports under this name: a device_table_fn. */
#define DEVICE_TABLE_SYMBOL "memd_device_table"
typedef const struct device_table *device_table_fn(void);

#endif

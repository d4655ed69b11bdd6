/* SPDX-License-Identifier: Apache-2.0 */
/* import.cu — shared memory of the host is registered; memory of the device comes as a descriptor
 * of virtual memory management, or as a handle of CUDA IPC.
 *
 * Descriptors are what new allocators can export (cuMemCreate, PyTorch's expandable segments); they
 * keep the memory alive whatever becomes of who exported it. Handles are what is left for
 * cudaMalloc: memory that its owner frees while we have it open is undefined behaviour, which is
 * why the daemon takes handles from administrators only.
 *
 * Virtual memory management is the driver's API. The plugin is linked with the static runtime alone
 * and asks that for the driver's functions, so that it loads, and says why it cannot work, on
 * machines without a driver.
 *
 * Not yet run on a GPU: it is compiled and linked by every build that has nvcc.
 */
#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

extern "C" {
#include "attention/cuda/import.h"
#include "base/error.h"
}

/* Since when these functions are what they are: CUDA 11.2 for all of them. */
enum { DRIVER_VERSION = 11020 };

struct import {
    struct import *next;
    void *memory;
    size_t bytes; /* mapped, for a descriptor */
    enum device_export_kind kind;
    CUmemGenericAllocationHandle allocation;
};

struct driver {
    PFN_cuMemImportFromShareableHandle_v10020 import_shareable;
    PFN_cuMemGetAllocationPropertiesFromHandle_v10020 get_properties;
    PFN_cuMemGetAllocationGranularity_v10020 get_granularity;
    PFN_cuMemAddressReserve_v10020 reserve;
    PFN_cuMemAddressFree_v10020 unreserve;
    PFN_cuMemMap_v10020 map;
    PFN_cuMemUnmap_v10020 unmap;
    PFN_cuMemSetAccess_v10020 set_access;
    PFN_cuMemRelease_v10020 release;
};

static int find(const char *name, void **ret_function, struct error *err)
{
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    cudaError_t status = cudaGetDriverEntryPointByVersion(name, ret_function, DRIVER_VERSION,
                                                          cudaEnableDefault, &found);
    if (status == cudaSuccess && found == cudaDriverEntryPointSuccess) return 0;
    (void)cudaGetLastError();
    return error_set(err, MEMD_EUNSUPPORTED, "the CUDA driver has no %s", name);
}

static int find_all(struct driver *driver, struct error *err)
{
    struct {
        const char *name;
        void **at;
    } wanted[] = {
        { "cuMemImportFromShareableHandle", (void **)&driver->import_shareable },
        { "cuMemGetAllocationPropertiesFromHandle", (void **)&driver->get_properties },
        { "cuMemGetAllocationGranularity", (void **)&driver->get_granularity },
        { "cuMemAddressReserve", (void **)&driver->reserve },
        { "cuMemAddressFree", (void **)&driver->unreserve },
        { "cuMemMap", (void **)&driver->map },
        { "cuMemUnmap", (void **)&driver->unmap },
        { "cuMemSetAccess", (void **)&driver->set_access },
        { "cuMemRelease", (void **)&driver->release },
    };
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < sizeof wanted / sizeof wanted[0]; i++)
        rc = find(wanted[i].name, wanted[i].at, err);
    return rc;
}

static int refused(CUresult result, const char *what, struct error *err)
{
    if (result == CUDA_SUCCESS) return 0;
    int code = result == CUDA_ERROR_OUT_OF_MEMORY ? MEMD_ENOMEM : MEMD_EINVAL;
    return error_set(err, code, "%s: CUDA error %d", what, (int)result);
}

static int runtime_refused(cudaError_t status, const char *what, struct error *err)
{
    if (status == cudaSuccess) return 0;
    (void)cudaGetLastError(); /* what is not sticky must not be taken for the next call's */
    int code = status == cudaErrorMemoryAllocation ? MEMD_ENOMEM : MEMD_EINVAL;
    return error_set(err, code, "%s: %s", what, cudaGetErrorString(status));
}

int import_pin(int ordinal, void *at, size_t bytes, struct error *err)
{
    int same_address = 0;
    int rc = runtime_refused(cudaDeviceGetAttribute(
                                 &same_address, cudaDevAttrCanUseHostPointerForRegisteredMem,
                                 ordinal),
                             "cudaDeviceGetAttribute", err);
    if (rc < 0) return rc;
    if (!same_address)
        return error_set(err, MEMD_EUNSUPPORTED,
                         "the device has other addresses for registered memory than the host");
    unsigned flags = cudaHostRegisterPortable | cudaHostRegisterMapped;
    return runtime_refused(cudaHostRegister(at, bytes, flags), "cudaHostRegister", err);
}

void import_unpin(void *at)
{
    (void)cudaHostUnregister(at);
}

/* The allocation at an address of ours. What was made before a failure is given back. */
static int map_allocation(const struct driver *driver, int ordinal, struct import *import,
                          struct error *err)
{
    CUmemAllocationProp properties;
    memset(&properties, 0, sizeof properties);
    int rc = refused(driver->get_properties(&properties, import->allocation),
                     "cuMemGetAllocationPropertiesFromHandle", err);
    size_t granularity = 0;
    if (rc == 0)
        rc = refused(driver->get_granularity(&granularity, &properties,
                                             CU_MEM_ALLOC_GRANULARITY_MINIMUM),
                     "cuMemGetAllocationGranularity", err);
    if (rc < 0) return rc;
    if (granularity == 0 || import->bytes > SIZE_MAX - granularity)
        return error_set(err, MEMD_EINVAL, "%zu bytes of device memory", import->bytes);
    import->bytes = (import->bytes + granularity - 1) / granularity * granularity;
    CUdeviceptr at = 0;
    rc = refused(driver->reserve(&at, import->bytes, 0, 0, 0), "cuMemAddressReserve", err);
    if (rc < 0) return rc;
    rc = refused(driver->map(at, import->bytes, 0, import->allocation, 0), "cuMemMap", err);
    bool mapped = rc == 0;
    CUmemAccessDesc access;
    memset(&access, 0, sizeof access);
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = ordinal;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    if (rc == 0)
        rc = refused(driver->set_access(at, import->bytes, &access, 1), "cuMemSetAccess", err);
    if (rc < 0 && mapped) (void)driver->unmap(at, import->bytes);
    if (rc < 0) (void)driver->unreserve(at, import->bytes);
    else import->memory = (void *)(uintptr_t)at;
    return rc;
}

static int open_descriptor(int ordinal, const struct device_export *from, struct import *import,
                           struct error *err)
{
    struct driver driver;
    int rc = find_all(&driver, err);
    if (rc < 0) return rc;
    rc = refused(driver.import_shareable(&import->allocation,
                                         (void *)(uintptr_t)from->descriptor,
                                         CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
                 "cuMemImportFromShareableHandle", err);
    if (rc < 0) return rc;
    rc = map_allocation(&driver, ordinal, import, err);
    if (rc < 0) (void)driver.release(import->allocation);
    return rc;
}

static int open_handle(const struct device_export *from, struct import *import, struct error *err)
{
    cudaIpcMemHandle_t handle;
    static_assert(sizeof handle == DEVICE_HANDLE_BYTES, "as in device.h");
    memcpy(&handle, from->handle, sizeof handle);
    return runtime_refused(cudaIpcOpenMemHandle(&import->memory, handle,
                                                cudaIpcMemLazyEnablePeerAccess),
                           "cudaIpcOpenMemHandle", err);
}

/* What the driver says it has at an address is what a neighbour's word is measured with. */
static int check_range(const struct import *import, size_t bytes, struct error *err)
{
    void *function = NULL;
    int rc = find("cuMemGetAddressRange", &function, err);
    if (rc < 0) return rc;
    PFN_cuMemGetAddressRange_v3020 get_range = (PFN_cuMemGetAddressRange_v3020)function;
    CUdeviceptr base = 0, at = (CUdeviceptr)(uintptr_t)import->memory;
    size_t size = 0;
    rc = refused(get_range(&base, &size, at), "cuMemGetAddressRange", err);
    if (rc < 0) return rc;
    if (at - base <= size && bytes <= size - (at - base)) return 0;
    return error_set(err, MEMD_EINVAL, "%zu bytes of device memory, the allocation has %zu", bytes,
                     size);
}

static void give_back(struct import *import)
{
    struct driver driver;
    if (import->kind == DEVICE_EXPORT_HANDLE) {
        (void)cudaIpcCloseMemHandle(import->memory);
    } else if (find_all(&driver, NULL) == 0) {
        CUdeviceptr at = (CUdeviceptr)(uintptr_t)import->memory;
        (void)driver.unmap(at, import->bytes);
        (void)driver.unreserve(at, import->bytes);
        (void)driver.release(import->allocation);
    }
    free(import);
}

int import_open(int ordinal, const struct device_export *from, struct import **list,
                void **ret_memory, struct error *err)
{
    struct import *import = (struct import *)calloc(1, sizeof *import);
    if (import == NULL) return error_set(err, MEMD_ENOMEM, "no memory for an import");
    import->kind = from->kind;
    import->bytes = from->bytes;
    int rc = from->kind == DEVICE_EXPORT_HANDLE ? open_handle(from, import, err)
                                                : open_descriptor(ordinal, from, import, err);
    if (rc < 0) {
        free(import);
        return rc;
    }
    rc = check_range(import, from->bytes, err);
    if (rc < 0) {
        give_back(import);
        return rc;
    }
    import->next = *list;
    *list = import;
    *ret_memory = import->memory;
    return 0;
}

void import_close(struct import **list, void *memory)
{
    for (struct import **at = list; *at != NULL; at = &(*at)->next) {
        struct import *import = *at;
        if (import->memory != memory) continue;
        *at = import->next;
        give_back(import);
        return;
    }
}

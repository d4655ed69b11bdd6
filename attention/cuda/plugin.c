/* SPDX-License-Identifier: Apache-2.0 */
/* plugin.c — the only way from memd to a vendor's libraries: one shared object, opened by path.
 *
 * It stays open for the life of the process: the CUDA runtime inside has threads and handlers of
 * its own, which do not survive dlclose.
 */
#include <dlfcn.h>
#include <string.h>

#include "attention/cuda/accelerator.h"
#include "base/error.h"

int accelerator_load_plugin(const char *path, const struct device_table **ret_table,
                            struct error *err)
{
    void *plugin = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (plugin == NULL) {
        const char *why = dlerror();
        return error_set(err, MEMD_EUNSUPPORTED, "%s", why == NULL ? path : why);
    }
    void *symbol = dlsym(plugin, DEVICE_TABLE_SYMBOL);
    if (symbol == NULL) {
        dlclose(plugin);
        return error_set(err, MEMD_EUNSUPPORTED, "%s has no %s", path, DEVICE_TABLE_SYMBOL);
    }
    device_table_fn *function = NULL;
    memcpy(&function, &symbol, sizeof function); /* ISO C has no cast from data to function */
    const struct device_table *table = function();
    if (table->version != DEVICE_TABLE_VERSION) {
        uint32_t version = table->version;
        dlclose(plugin);
        return error_set(err, MEMD_EUNSUPPORTED, "%s has version %u of the device table, %u is "
                         "needed", path, version, (unsigned)DEVICE_TABLE_VERSION);
    }
    *ret_table = table;
    return 0;
}

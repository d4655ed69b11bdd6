/* SPDX-License-Identifier: Apache-2.0 */
/* fuzz_config.c — a configuration file of any bytes is either refused with a reason or means what
 * it prints: printing every option and reading that back must give the same text again.
 */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "base/error.h"
#include "daemon/config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct config config;
    config_defaults(&config);
    struct error err = { 0 };
    int rc = config_parse((const char *)data, bytes, "fuzz", &config, &err);
    if (rc < 0) {
        assert(err.code == rc && strncmp(err.text, "fuzz:", 5) == 0);
        return 0;
    }
    for (size_t i = 0; i < option_count; i++) {
        char text[OPTION_TEXT_BYTES], again[OPTION_TEXT_BYTES];
        struct config copy = config;
        option_print(&option_table[i], &config, text);
        rc = option_set(&option_table[i], text, &copy, &err);
        assert(rc == 0);
        option_print(&option_table[i], &copy, again);
        assert(strcmp(text, again) == 0);
    }
    return 0;
}

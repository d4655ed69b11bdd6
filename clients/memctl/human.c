/* SPDX-License-Identifier: Apache-2.0 */
/* human.c — three significant digits everywhere: enough to compare two rows, short enough for a
 * column. */
#include "clients/memctl/human.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Digits after the point so that three significant ones are shown of a value below 10,000. */
static int decimals(double value)
{
    return value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
}

struct human human_bytes(uint64_t bytes)
{
    static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
    struct human human;
    if (bytes < 1024) {
        snprintf(human.text, sizeof human.text, "%" PRIu64 " B", bytes);
        return human;
    }
    double value = (double)bytes / 1024.0;
    size_t unit = 0;
    while (value >= 1023.5 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1024.0;
        unit++;
    }
    snprintf(human.text, sizeof human.text, "%.*f %s", decimals(value), value, units[unit]);
    return human;
}

struct human human_bytes_rate(double per_second)
{
    static const char *const units[] = { "B/s", "kB/s", "MB/s", "GB/s", "TB/s" };
    struct human human;
    double value = per_second;
    size_t unit = 0;
    while (value >= 999.5 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1000.0;
        unit++;
    }
    snprintf(human.text, sizeof human.text, "%.*f %s", decimals(value), value, units[unit]);
    return human;
}

struct human human_count(uint64_t count)
{
    char digits[24];
    int length = snprintf(digits, sizeof digits, "%" PRIu64, count);
    struct human human;
    size_t out = 0;
    for (int i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) human.text[out++] = ',';
        human.text[out++] = digits[i];
    }
    human.text[out] = '\0';
    return human;
}

struct human human_counted(uint64_t count, const char *name)
{
    size_t bytes = strlen(name);
    assert(bytes > 0 && bytes < 20);
    const char *ending = count == 1 ? "" : name[bytes - 1] == 'x' ? "es" : "s";
    struct human number = human_count(count), human;
    snprintf(human.text, sizeof human.text, "%.26s %s%s", number.text, name, ending);
    return human;
}

struct human human_seconds(double seconds)
{
    static const struct {
        double below; /* use this unit for values below, in seconds */
        double unit;
        const char *name;
    } scale[] = {
        { 1e-6, 1e-9, "ns" }, { 1e-3, 1e-6, "us" }, { 1.0, 1e-3, "ms" },
        { 120.0, 1.0, "s" },  { 7200.0, 60.0, "m" }, { 172800.0, 3600.0, "h" },
        { HUGE_VAL, 86400.0, "d" },
    };
    struct human human;
    if (seconds <= 0.0) {
        snprintf(human.text, sizeof human.text, "0 s");
        return human;
    }
    size_t i = 0;
    while (seconds >= scale[i].below) i++;
    double value = seconds / scale[i].unit;
    snprintf(human.text, sizeof human.text, "%.*f %s", decimals(value), value, scale[i].name);
    return human;
}

struct human human_since(uint64_t then_ms, uint64_t now_ms)
{
    struct human human;
    if (then_ms == 0) {
        snprintf(human.text, sizeof human.text, "never");
    } else if (then_ms > now_ms) {
        struct human length = human_seconds((double)(then_ms - now_ms) / 1000.0);
        snprintf(human.text, sizeof human.text, "in %.20s", length.text);
    } else {
        struct human length = human_seconds((double)(now_ms - then_ms) / 1000.0);
        snprintf(human.text, sizeof human.text, "%.20s ago", length.text);
    }
    return human;
}

struct human human_share(double share)
{
    struct human human;
    snprintf(human.text, sizeof human.text, "%.1f %%", share * 100.0);
    return human;
}

bool human_parse_seconds(const char *text, double *ret_seconds)
{
    static const struct {
        const char *name;
        double seconds;
    } units[] = { { "", 1.0 },     { "s", 1.0 },    { "ms", 1e-3 },   { "m", 60.0 },
                  { "min", 60.0 }, { "h", 3600.0 }, { "d", 86400.0 } };
    /* strtod also takes "inf", "nan" and hexadecimal. */
    if (!isdigit((unsigned char)text[0])) return false;
    char *end = NULL;
    double value = strtod(text, &end);
    if (text[0] == '0' && (text[1] == 'x' || text[1] == 'X')) return false;
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(end, units[i].name) != 0) continue;
        value *= units[i].seconds;
        if (!(value <= 366.0 * 86400.0)) return false;
        *ret_seconds = value;
        return true;
    }
    return false;
}

bool human_parse_uint(const char *text, uint64_t max, uint64_t *ret_value)
{
    if (!isdigit((unsigned char)text[0])) return false;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || value > max) return false;
    *ret_value = value;
    return true;
}

/* SPDX-License-Identifier: Apache-2.0 */
/* method.h — the one list of requests: number on the wire, message types, who may call.
 *
 * From it come the dispatch table of the daemon, the client's calls and the table in
 * docs/PROTOCOL.md (a test compares). Numbers are never reused. To add a request kind see
 * docs/HACKING.md.
 */
#ifndef MEMD_PROTO_METHOD_H
#define MEMD_PROTO_METHOD_H

enum role { ROLE_NONE, ROLE_READ, ROLE_WRITE, ROLE_ADMIN };

/* X(NAME, number, snake_name, Request message, Reply message, least role) — protobuf-c spells the C
 * types Memd__<Request> and memd__<snake>_request__descriptor. */
#define METHOD_MAP(X)                                         \
    X(HELLO, 1, hello, Hello, ROLE_NONE)                      \
    X(HEALTH, 2, health, Health, ROLE_NONE)                   \
    X(OPEN, 16, open, Open, ROLE_READ)                        \
    X(APPEND, 17, append, Append, ROLE_WRITE)                 \
    X(ATTEND, 18, attend, Attend, ROLE_READ)                  \
    X(SEARCH, 19, search, Search, ROLE_READ)                  \
    X(FETCH, 20, fetch, Fetch, ROLE_READ)                     \
    X(TRUNCATE, 21, truncate, Truncate, ROLE_WRITE)           \
    X(FORK, 22, fork, Fork, ROLE_WRITE)                       \
    X(DROP, 23, drop, Drop, ROLE_WRITE)                       \
    X(LIST, 24, list, List, ROLE_READ)                        \
    X(STAT, 25, stat, Stat, ROLE_READ)                        \
    X(PIN, 26, pin, Pin, ROLE_WRITE)                          \
    X(METHODS, 27, methods, Methods, ROLE_READ)               \
    X(OBSERVE, 28, observe, Observe, ROLE_WRITE)              \
    X(COMPRESS, 29, compress, Compress, ROLE_WRITE)           \
    X(PUT_PARAMS, 30, put_params, PutParams, ROLE_WRITE)      \
    X(DROP_PARAMS, 31, drop_params, DropParams, ROLE_WRITE)   \
    X(MAP_MEMORY, 32, map_memory, MapMemory, ROLE_READ)       \
    X(UNMAP_MEMORY, 33, unmap_memory, UnmapMemory, ROLE_READ) \
    X(STATUS, 48, status, Status, ROLE_READ)                  \
    X(STATS, 49, stats, Stats, ROLE_READ)                     \
    X(VERIFY, 50, verify, Verify, ROLE_ADMIN)                 \
    X(DUMP, 51, dump, Dump, ROLE_ADMIN)                       \
    X(COMPACT, 52, compact, Compact, ROLE_ADMIN)              \
    X(DRAIN, 53, drain, Drain, ROLE_ADMIN)                    \
    X(RECALL, 54, recall, Recall, ROLE_READ)                  \
    X(REBUILD, 55, rebuild, Rebuild, ROLE_READ)               \
    X(EXPLAIN, 56, explain, Explain, ROLE_READ)

enum method_number {
#define X(NAME, number, snake, Message, role) METHOD_##NAME = (number),
    METHOD_MAP(X)
#undef X
};

/* "append", or NULL when there is no such method. */
const char *method_name(unsigned method);

#endif

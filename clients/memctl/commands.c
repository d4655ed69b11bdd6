/* SPDX-License-Identifier: Apache-2.0 */
/* commands.c — name, function, arguments and one line each, in the order in which help shows
 * them: look, check, change, operate. */
#include "clients/memctl/commands.h"

#include <string.h>

#define OPTIONS_END { 0, NULL, NULL, KIND_NONE, NULL }

static const struct option context_options[] = {
    { 'l', "layers", NULL, KIND_NONE, "show what the method keeps of each layer (loads it)" },
    OPTIONS_END,
};

static const struct option dump_options[] = {
    { 'n', "limit", "COUNT", KIND_NONE, "stop after this many records" },
    OPTIONS_END,
};

static const struct option drop_options[] = {
    { 'f', "force", NULL, KIND_NONE, "drop pinned contexts too; a missing one is no error" },
    OPTIONS_END,
};

static const struct option fork_options[] = {
    { 'm', "method", "NAME", KIND_METHOD, "read it with this memory method (default: the same)" },
    { 'p', "parameters", "LIST", KIND_NONE, "of that method: name=value, name=value ..." },
    OPTIONS_END,
};

static const struct option drain_options[] = {
    { 'd', "deadline", "DURATION", KIND_NONE,
      "cancel what still runs after this long (default: as configured)" },
    OPTIONS_END,
};

#define TARGET_OPTION                                                                   \
    { 'e', "target-error", "SHARE", KIND_NONE,                                          \
      "relative error wanted of answers, 0 (exact) to 1 (default: the context's)" }

static const struct option recall_options[] = {
    { 'l', "layer", "NUMBER", KIND_NONE, "this layer alone (default: all)" },
    TARGET_OPTION,
    OPTIONS_END,
};

static const struct option explain_options[] = {
    { 'l', "layer", "NUMBER", KIND_NONE, "layer, counted from 0 (default 0)" },
    { 'q', "query", "NUMBER", KIND_NONE, "0 = the newest, 1 = the one before it ... (default 0)" },
    { 'H', "head", "NUMBER", KIND_NONE, "what this query head reads alone (default: all)" },
    TARGET_OPTION,
    OPTIONS_END,
};

static const struct option rebuild_options[] = {
    { 'a', "all", NULL, KIND_NONE, "all contexts" },
    { 'n', "no-wait", NULL, KIND_NONE, "return as soon as the daemon has begun" },
    OPTIONS_END,
};

static const struct option top_options[] = {
    { 'i', "interval", "DURATION", KIND_NONE, "time between samples (default 1s)" },
    { 'n', "count", "COUNT", KIND_NONE, "stop after this many samples" },
    OPTIONS_END,
};

static const struct option bench_options[] = {
    { 'r', "repeat", "COUNT", KIND_NONE,
      "rounds of each measurement; the median is shown (default 3)" },
    { 0, "requests", "COUNT", KIND_NONE, "requests of a round of overhead (default 20000)" },
    { 0, "tokens", "COUNT", KIND_NONE, "tokens that attend reads (default 32768; methods: 8192)" },
    { 'm', "method", "NAME", KIND_METHOD,
      "memory method of the contexts (default full), or all: compare them" },
    TARGET_OPTION,
    { 0, "append-size", "MIB", KIND_NONE, "KV that a round of append sends (default 1024)" },
    { 0, "disk", "DIR", KIND_PATH, "where to measure the disk (default: the daemon's data)" },
    { 0, "idle", "COUNT", KIND_NONE, "idle connections (default 1000)" },
    { 0, "busy", "COUNT", KIND_NONE, "busy connections (default 64)" },
    { 0, "seconds", "COUNT", KIND_NONE, "length of a round of connections (default 5)" },
    OPTIONS_END,
};

#define MANY OPTIONS_ARGUMENTS_MAX

const struct command commands[] = {
    { "status", status_main, "", 0, 0, KIND_NONE, "what the daemon is and holds", NULL },
    { "contexts", contexts_main, "[PREFIX]", 0, 1, KIND_CONTEXT, "list contexts", NULL },
    { "context", context_main, "NAME", 1, 1, KIND_CONTEXT, "show one context and its model",
      context_options },
    { "methods", methods_main, "", 0, 0, KIND_NONE, "list memory methods and their options", NULL },
    { "stats", stats_main, "", 0, 0, KIND_NONE, "show all counters and histograms", NULL },
    { "verify", verify_main, "[NAME]", 0, 1, KIND_CONTEXT,
      "prove every checksum and invariant of the store, or of one context", NULL },
    { "recall", recall_main, "NAME", 1, 1, KIND_CONTEXT,
      "ask the latest queries again, and exactly: predicted and true error", recall_options },
    { "explain", explain_main, "NAME", 1, 1, KIND_CONTEXT,
      "show what is read for one of the latest queries, where and why", explain_options },
    { "dump", dump_main, "[NAME]", 0, 1, KIND_CONTEXT, "list the records of the store",
      dump_options },
    { "drop", drop_main, "NAME...", 1, MANY, KIND_CONTEXT, "delete contexts", drop_options },
    { "fork", fork_main, "NAME NEW", 2, 2, KIND_CONTEXT, "copy a context, sharing what is stored",
      fork_options },
    { "truncate", truncate_main, "NAME POSITION", 2, 2, KIND_CONTEXT,
      "forget the tokens from a position on", NULL },
    { "pin", pin_main, "NAME DURATION", 2, 2, KIND_CONTEXT, "protect a context from eviction",
      NULL },
    { "unpin", unpin_main, "NAME", 1, 1, KIND_CONTEXT, "end that protection", NULL },
    { "rebuild", rebuild_main, "[NAME...]", 0, MANY, KIND_CONTEXT,
      "make what is derived from the rows again", rebuild_options },
    { "compact", compact_main, "PATH", 1, 1, KIND_PATH, "write a compacted copy of the store",
      NULL },
    { "bench", bench_main, "[SELECTION...]", 0, MANY, KIND_BENCH,
      "measure overhead, append, attend, connections; compare methods", bench_options },
    { "drain", drain_main, "", 0, 0, KIND_NONE, "finish what runs, take nothing new",
      drain_options },
    { "health", health_main, "", 0, 0, KIND_NONE, "exit 0 when the daemon takes work, 4 when not",
      NULL },
    { "top", top_main, "", 0, 0, KIND_NONE, "request rates and latencies, every second",
      top_options },
    { "help", help_main, "[COMMAND]", 0, 1, KIND_COMMAND, "show help", NULL },
    { "_complete", complete_main, "-- WORD...", 0, MANY, KIND_NONE, "candidates for a shell",
      NULL },
    { NULL, NULL, NULL, 0, 0, KIND_NONE, NULL, NULL },
};

const struct command *commands_find(const char *name)
{
    for (const struct command *command = commands; command->name != NULL; command++) {
        if (strcmp(command->name, name) == 0) return command;
    }
    return NULL;
}

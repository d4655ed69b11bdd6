/* SPDX-License-Identifier: Apache-2.0 */
/* op_methods.c — the memory methods and what can be set for each, straight from their tables. Not
 * part of Hello, which every connection pays for. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/wire.h"
#include "memory/methods/methods.h"

static Memd__MethodOption *encode_option(const struct option_spec *spec, struct arena *arena)
{
    Memd__MethodOption *option = arena_alloc(arena, sizeof *option);
    if (option == NULL) return NULL;
    *option = (Memd__MethodOption)MEMD__METHOD_OPTION__INIT;
    option->name = (char *)spec->name;
    option->help = (char *)spec->help;
    option->fallback = spec->fallback;
    option->least = spec->least;
    option->most = spec->most;
    option->whole = spec->whole;
    if (spec->choices != NULL) {
        option->choices = (char **)spec->choices;
        option->n_choices = (size_t)spec->most + 1;
    }
    return option;
}

static Memd__MethodInfo *encode_method(const struct method *method, struct arena *arena)
{
    const struct option_table *table = method_options(method);
    size_t count = table->count;
    Memd__MethodInfo *info = arena_alloc(arena, sizeof *info);
    Memd__MethodOption **options = arena_calloc(arena, count, sizeof(Memd__MethodOption *));
    if (info == NULL || options == NULL) return NULL;
    *info = (Memd__MethodInfo)MEMD__METHOD_INFO__INIT;
    info->name = (char *)method->name;
    info->help = (char *)method->help;
    info->is_default = method == method_default();
    info->options = options;
    for (; info->n_options < count; info->n_options++) {
        options[info->n_options] = encode_option(&table->specs[info->n_options], arena);
        if (options[info->n_options] == NULL) return NULL;
    }
    return info;
}

static int run(struct request *req, struct error *err)
{
    const char *const *names = catalog_methods();
    size_t count = 0;
    while (names[count] != NULL) count++;
    Memd__MethodsReply reply = MEMD__METHODS_REPLY__INIT;
    reply.methods = arena_calloc(&req->arena, count, sizeof(Memd__MethodInfo *));
    if (reply.methods == NULL) return wire_no_memory(err);
    for (; reply.n_methods < count; reply.n_methods++) {
        const struct method *method = method_find(names[reply.n_methods]);
        reply.methods[reply.n_methods] = encode_method(method, &req->arena);
        if (reply.methods[reply.n_methods] == NULL) return wire_no_memory(err);
    }
    return request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_methods = { .run = run, .is_tiny = dispatch_always_tiny };

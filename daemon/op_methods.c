/* SPDX-License-Identifier: Apache-2.0 */
/* op_methods.c — the memory methods and what can be set for each, straight from their tables. Not
 * part of Hello, which every connection pays for. */
#include <assert.h>

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

static bool encode_tensors(const struct param_table *table, struct arena *arena,
                           Memd__MethodInfo *info)
{
    if (table == NULL) return true;
    info->tensors = arena_calloc(arena, table->count, sizeof(Memd__MethodTensor *));
    Memd__MethodTensor *tensors = arena_calloc(arena, table->count, sizeof *tensors);
    if (info->tensors == NULL || tensors == NULL) return false;
    for (size_t i = 0; i < table->count; i++) {
        tensors[i] = (Memd__MethodTensor)MEMD__METHOD_TENSOR__INIT;
        tensors[i].name = (char *)table->specs[i].name;
        tensors[i].shape = (char *)table->specs[i].shape;
        tensors[i].help = (char *)table->specs[i].help;
        info->tensors[i] = &tensors[i];
    }
    info->n_tensors = table->count;
    return true;
}

static void encode_abilities(const struct method *method, Memd__MethodInfo *info)
{
    double options[OPTIONS_MAX];
    int rc = method_parse(method, NULL, 0, options, NULL);
    assert(rc == 0); /* defaults are parameters too */
    uint32_t columns = method->columns == NULL ? COLUMNS_NONE : method->columns(options);
    info->takes_mass = method->takes_mass;
    info->compresses = method->compress != NULL;
    info->wants_queries = (columns & COLUMNS_QUERIES) != 0;
    info->samples_queries = method->keeps_queries;
    info->wants_marks = (columns & COLUMNS_MARKS) != 0;
    info->folds = method->fold != NULL;
    info->state_width = method->state_width == NULL ? 0 : method->state_width(options);
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
    encode_abilities(method, info);
    if (!encode_tensors(method->params, arena, info)) return NULL;
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

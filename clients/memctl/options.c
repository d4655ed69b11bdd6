/* SPDX-License-Identifier: Apache-2.0 */
/* options.c — one pass over the words. Not getopt_long: it keeps its state in globals,
 * abbreviates long options, and cannot say where it stopped, which completion has to know. */
#include "clients/memctl/options.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "clients/memctl/commands.h"

const struct option options_global[] = {
    { 's', "socket", "ADDRESS", KIND_PATH,
      "where memd listens: a path, unix:PATH or tcp:HOST:PORT" },
    { 'j', "json", NULL, KIND_NONE, "print JSON instead of tables" },
    { 0, "token-file", "FILE", KIND_PATH, "file with the token that TCP listeners ask for" },
    { 't', "timeout", "DURATION", KIND_NONE, "give up on a request after this long (default 30s)" },
    { 'h', "help", NULL, KIND_NONE, "show help for memctl or for a command" },
    { 'V', "version", NULL, KIND_NONE, "show the version" },
    { 0, NULL, NULL, KIND_NONE, NULL },
};

struct parser {
    struct options *options;
    char *text;
    size_t text_bytes;
    /* The option whose argument comes next, and where its value goes. */
    const char **pending;
};

static bool refuse(struct parser *parser, const char *what, const char *word, size_t word_bytes)
{
    snprintf(parser->text, parser->text_bytes, "%s '%.*s'", what, (int)word_bytes, word);
    return false;
}

/* The option that `matches`, and the slot of its value; NULL when neither list has it. */
static const struct option *lookup(struct options *options, char letter, const char *name,
                                   size_t name_bytes, const char ***ret_slot)
{
    const struct option *lists[] = {
        options_global, options->command == NULL ? NULL : options->command->options
    };
    const char **values[] = { options->global, options->own };
    for (size_t l = 0; l < 2; l++) {
        for (size_t i = 0; lists[l] != NULL && lists[l][i].name != NULL; i++) {
            const struct option *option = &lists[l][i];
            assert(i < OPTIONS_MAX);
            bool same = name == NULL ? option->letter == letter
                                     : strlen(option->name) == name_bytes &&
                                           memcmp(option->name, name, name_bytes) == 0;
            if (!same) continue;
            *ret_slot = &values[l][i];
            return option;
        }
    }
    return NULL;
}

/* `value` NULL: none was attached with "=" or directly behind the letter. */
static void take(struct parser *parser, const struct option *option, const char **slot,
                 const char *value)
{
    if (option->argument == NULL) {
        *slot = "";
    } else if (value != NULL) {
        *slot = value;
    } else {
        parser->pending = slot;
        parser->options->unfinished = option;
    }
}

static bool parse_long(struct parser *parser, const char *word)
{
    const char *name = word + 2;
    const char *equals = strchr(name, '=');
    size_t name_bytes = equals == NULL ? strlen(name) : (size_t)(equals - name);
    const char **slot = NULL;
    const struct option *option = lookup(parser->options, 0, name, name_bytes, &slot);
    if (option == NULL) return refuse(parser, "no option", word, name_bytes + 2);
    if (equals != NULL && option->argument == NULL) {
        return refuse(parser, "no argument is taken by option", word, name_bytes + 2);
    }
    take(parser, option, slot, equals == NULL ? NULL : equals + 1);
    return true;
}

static bool parse_short(struct parser *parser, const char *word)
{
    for (const char *s = word + 1; *s != '\0'; s++) {
        const char **slot = NULL;
        const struct option *option = lookup(parser->options, *s, NULL, 0, &slot);
        if (option == NULL) return refuse(parser, "no option", (char[]){ '-', *s }, 2);
        bool rest = option->argument != NULL && s[1] != '\0';
        take(parser, option, slot, rest ? s + 1 : NULL);
        if (option->argument != NULL) break;
    }
    return true;
}

static bool parse_argument(struct parser *parser, char *word)
{
    struct options *options = parser->options;
    if (options->command == NULL) {
        options->command = commands_find(word);
        return options->command != NULL || refuse(parser, "no command", word, strlen(word));
    }
    if (options->argument_count == OPTIONS_ARGUMENTS_MAX) {
        return refuse(parser, "too many arguments from", word, strlen(word));
    }
    options->arguments[options->argument_count++] = word;
    return true;
}

bool options_parse(size_t count, char **argv, struct options *ret_options, char *ret_text,
                   size_t text_bytes)
{
    *ret_options = (struct options){ .command = NULL };
    struct parser parser = { .options = ret_options, .text = ret_text, .text_bytes = text_bytes };
    bool good = true;
    for (size_t i = 0; good && i < count; i++) {
        char *word = argv[i];
        if (parser.pending != NULL) {
            *parser.pending = word;
            parser.pending = NULL;
            ret_options->unfinished = NULL;
        } else if (ret_options->ended || word[0] != '-' || word[1] == '\0') {
            good = parse_argument(&parser, word);
        } else if (strcmp(word, "--") == 0) {
            ret_options->ended = true;
        } else {
            good = word[1] == '-' ? parse_long(&parser, word) : parse_short(&parser, word);
        }
    }
    if (good && parser.pending != NULL) {
        snprintf(ret_text, text_bytes, "option '--%s' needs an argument: %s",
                 ret_options->unfinished->name, ret_options->unfinished->argument);
        return false;
    }
    return good;
}

static const char *value_of(const struct option *list, const char *const *values, const char *name)
{
    size_t i = 0;
    while (list[i].name != NULL && strcmp(list[i].name, name) != 0) i++;
    assert(list[i].name != NULL);
    return values[i];
}

const char *options_global_value(const struct options *options, const char *name)
{
    return value_of(options_global, options->global, name);
}

const char *options_value(const struct options *options, const char *name)
{
    return value_of(options->command->options, options->own, name);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* main.c — the command line: every option of the configuration is also a flag.
 *
 * The flags come from the option table (`map_size` is `--map-size`), so that nothing is declared
 * twice. The only file that exits; everything it calls returns.
 */
#include <assert.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "base/log.h"
#include "daemon/config.h"
#include "daemon/heap.h"
#include "daemon/server.h"

/* Values of getopt_long; options of the table follow from OPTION_FIRST. */
enum { FLAG_CONFIG = 256, FLAG_CHECK, FLAG_EXAMPLE, FLAG_VERSION, FLAG_HELP, OPTION_FIRST };
enum { NAME_BYTES = 32, EXIT_USAGE = 2 };

struct command {
    const char *config_path;
    bool check, example, version, help;
    struct config_override *overrides; /* owned */
    size_t override_count;
    char (*names)[NAME_BYTES];         /* owned: flag names of the table */
    struct option *flags;              /* owned */
};

static void command_fini(struct command *command)
{
    free(command->overrides);
    free(command->names);
    free(command->flags);
}

static void make_flag_name(const char *key, char ret_name[NAME_BYTES])
{
    snprintf(ret_name, NAME_BYTES, "%s", key);
    for (char *c = ret_name; *c != '\0'; c++)
        if (*c == '_') *c = '-';
}

static bool make_flags(struct command *command)
{
    static const struct option own[] = {
        { "config", required_argument, NULL, FLAG_CONFIG },
        { "check-config", no_argument, NULL, FLAG_CHECK },
        { "print-config", no_argument, NULL, FLAG_EXAMPLE },
        { "version", no_argument, NULL, FLAG_VERSION },
        { "help", no_argument, NULL, FLAG_HELP },
    };
    size_t own_count = sizeof own / sizeof own[0];
    command->names = calloc(option_count, sizeof *command->names);
    command->flags = calloc(own_count + option_count + 1, sizeof *command->flags);
    if (command->names == NULL || command->flags == NULL) return false;
    memcpy(command->flags, own, sizeof own);
    for (size_t i = 0; i < option_count; i++) {
        make_flag_name(option_table[i].name, command->names[i]);
        command->flags[own_count + i] =
            (struct option){ command->names[i], required_argument, NULL, OPTION_FIRST + (int)i };
    }
    return true;
}

static bool parse_arguments(int argc, char **argv, struct command *command)
{
    command->overrides = calloc((size_t)argc, sizeof *command->overrides);
    if (command->overrides == NULL || !make_flags(command)) return false;
    for (;;) {
        int flag = getopt_long(argc, argv, "", command->flags, NULL);
        if (flag < 0) break;
        switch (flag) {
        case FLAG_CONFIG: command->config_path = optarg; break;
        case FLAG_CHECK: command->check = true; break;
        case FLAG_EXAMPLE: command->example = true; break;
        case FLAG_VERSION: command->version = true; break;
        case FLAG_HELP: command->help = true; break;
        case '?': return false; /* getopt said why */
        default:
            command->overrides[command->override_count++] = (struct config_override){
                .option = &option_table[flag - OPTION_FIRST], .value = optarg
            };
        }
    }
    if (optind < argc) {
        fprintf(stderr, "memd: unexpected argument '%s'\n", argv[optind]);
        return false;
    }
    return true;
}

static void print_help(void)
{
    printf("Usage: memd [--config FILE] [--KEY VALUE]...\n"
           "Keep the past of language models and answer attention over it.\n\n"
           "  --config FILE   read `key = value` lines; flags are stronger than the file\n"
           "  --check-config  check configuration and token file, say what is wrong, exit\n"
           "  --print-config  print the configuration in force as a commented file, exit\n"
           "  --version       print the version, exit\n"
           "  --help          print this, exit\n\n"
           "Every key of the file is a flag. Keys, [default]:\n\n");
    for (size_t i = 0; i < option_count; i++) {
        const struct option_info *option = &option_table[i];
        char name[NAME_BYTES];
        make_flag_name(option->name, name);
        printf("  --%-24s %s%s [%s]\n", name, option->meaning,
               option->reload ? " (SIGHUP)" : "", option->default_text);
    }
    printf("\nSignals: SIGTERM and SIGINT drain, sync and exit; SIGHUP reads the configuration "
           "again.\n"
           "Try:     memd --data /tmp/memd --socket /tmp/memd.sock\n");
}

static void print_config(const struct config *config)
{
    printf("# memd.conf — see memd.conf(5). Lines are `key = value`.\n");
    for (size_t i = 0; i < option_count; i++) {
        const struct option_info *option = &option_table[i];
        char text[OPTION_TEXT_BYTES];
        option_print(option, config, text);
        bool is_default = strcmp(text, option->default_text) == 0;
        printf("\n# %s%s\n%s%s = %s\n", option->meaning, option->reload ? " (SIGHUP)" : "",
               is_default ? "#" : "", option->name, text);
    }
}

/* A thousand idle clients are a thousand descriptors. */
static void raise_descriptor_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int report(const struct error *err)
{
    log_event(LOG_ERROR, "failed", "%s: %s", error_name(err->code), err->text);
    return EXIT_FAILURE;
}

static int serve(const struct config *config, const struct command *command)
{
    struct server_origin origin = { .config_path = command->config_path,
                                    .overrides = command->overrides,
                                    .override_count = command->override_count };
    CLEANUP(free_ptr) struct server *server = malloc(sizeof *server);
    struct error err = { 0 };
    if (server == NULL) return EXIT_FAILURE;
    signal(SIGPIPE, SIG_IGN);
    raise_descriptor_limit();
    int rc = server_open(config, &origin, server, &err);
    if (rc == 0) server_run(server);
    server_close(server);
    if (rc < 0) return report(&err);
    log_event(LOG_INFO, "stopped", "data=%s", config->data);
    return EXIT_SUCCESS;
}

int main(int argc, char **argv)
{
    heap_init();
    CLEANUP(command_fini) struct command command = { 0 };
    if (!parse_arguments(argc, argv, &command)) {
        fprintf(stderr, "memd: try 'memd --help'\n");
        return EXIT_USAGE;
    }
    if (command.help) print_help();
    if (command.version) printf("%s\n", SERVER_BUILD);
    if (command.help || command.version) return EXIT_SUCCESS;

    struct error err = { 0 };
    struct config config;
    struct identity identity;
    int rc = config_load(command.config_path, command.overrides, command.override_count, &config,
                         &err);
    if (rc == 0 && command.check) rc = identity_load(config.token_file, &identity, &err);
    if (rc < 0) {
        fprintf(stderr, "memd: %s\n", err.text);
        return EXIT_USAGE;
    }
    if (command.example) print_config(&config);
    if (command.check || command.example) return EXIT_SUCCESS;
    log_set_level(config.log_level);
    return serve(&config, &command);
}

/* SPDX-License-Identifier: Apache-2.0 */
/* identity.c — tokens are compared whole, all of them, without a branch on their bytes. */
#include "daemon/identity.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/error.h"
#include "daemon/config.h"

static int parse_line(char *line, struct identity *identity, struct error *err)
{
    char *rest = NULL;
    char *token = strtok_r(line, " \t\r\n", &rest);
    if (token == NULL || token[0] == '#') return 0;
    char *role_text = strtok_r(NULL, " \t\r\n", &rest);
    int role = role_text == NULL ? (int)ROLE_WRITE : config_role_parse(role_text);
    if (role <= (int)ROLE_NONE || strtok_r(NULL, " \t\r\n", &rest) != NULL)
        return error_set(err, MEMD_EINVAL, "expected 'TOKEN [read|write|admin]'");
    size_t count = strlen(token);
    if (count < IDENTITY_TOKEN_BYTES_MIN || count > IDENTITY_TOKEN_BYTES_MAX)
        return error_set(err, MEMD_EINVAL, "token of %zu bytes, must be %d … %d", count,
                         IDENTITY_TOKEN_BYTES_MIN, IDENTITY_TOKEN_BYTES_MAX);
    if (identity->token_count == IDENTITY_TOKENS_MAX)
        return error_set(err, MEMD_EINVAL, "more than %d tokens", IDENTITY_TOKENS_MAX);
    struct identity_token *entry = &identity->tokens[identity->token_count++];
    memcpy(entry->bytes, token, count);
    entry->count = count;
    entry->role = (enum role)role;
    return 0;
}

static void close_file(FILE **file)
{
    if (*file != NULL) fclose(*file);
}

int identity_load(const char *token_file, struct identity *ret_identity, struct error *err)
{
    struct identity identity = { .token_count = 0 };
    if (token_file[0] == '\0') {
        *ret_identity = identity;
        return 0;
    }
    CLEANUP(close_file) FILE *file = fopen(token_file, "re");
    struct stat info;
    if (file == NULL || fstat(fileno(file), &info) < 0)
        return error_set(err, MEMD_EIO, "token_file %s: %s", token_file, strerror(errno));
    if ((info.st_mode & 0007) != 0)
        return error_set(err, MEMD_EIO, "token_file %s: mode %04o lets everybody read it",
                         token_file, (unsigned)(info.st_mode & 0777));
    char line[512];
    for (unsigned number = 1; fgets(line, sizeof line, file) != NULL; number++) {
        struct error detail = { 0 };
        int rc = parse_line(line, &identity, &detail);
        if (rc < 0) return error_set(err, rc, "%s:%u: %s", token_file, number, detail.text);
    }
    if (identity.token_count == 0)
        return error_set(err, MEMD_EINVAL, "token_file %s holds no token", token_file);
    *ret_identity = identity;
    return 0;
}

static bool is_listed(const struct uid_list *list, uint32_t uid)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->uids[i] == uid) return true;
    return false;
}

enum role identity_of_uid(const struct config *config, uint32_t uid)
{
    if (uid == 0 || uid == (uint32_t)geteuid() || is_listed(&config->admin_uids, uid))
        return ROLE_ADMIN;
    return is_listed(&config->read_uids, uid) ? ROLE_READ : config->other_role;
}

enum role identity_of_token(const struct identity *identity, const char *token)
{
    unsigned char shown[IDENTITY_TOKEN_BYTES_MAX] = { 0 };
    size_t count = strlen(token);
    if (count > sizeof shown) return ROLE_NONE;
    memcpy(shown, token, count);
    enum role role = ROLE_NONE;
    for (size_t i = 0; i < identity->token_count; i++) {
        const struct identity_token *entry = &identity->tokens[i];
        volatile unsigned differ = entry->count != count;
        for (size_t j = 0; j < sizeof shown; j++) differ |= (unsigned)(entry->bytes[j] ^ shown[j]);
        if (differ == 0) role = entry->role;
    }
    return role;
}

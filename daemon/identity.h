/* SPDX-License-Identifier: Apache-2.0 */
/* identity.h — who is on the other side, and what they may do.
 *
 * Unix: the kernel tells the user id (SO_PEERCRED). root and the daemon's own user are admin, then
 * admin_uids, read_uids, and everybody else who may open the socket has other_role.
 * TCP: nobody, until Hello shows a token of the token file. A file may hold several tokens, so that
 * keys can be changed without a gap.
 *
 * Threads  loop
 * Errors   MEMD_EIO the token file cannot be read or others can read it · MEMD_EINVAL its syntax
 */
#ifndef MEMD_DAEMON_IDENTITY_H
#define MEMD_DAEMON_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "proto/method.h"

struct config;
struct error;

enum { IDENTITY_TOKENS_MAX = 16, IDENTITY_TOKEN_BYTES_MIN = 16, IDENTITY_TOKEN_BYTES_MAX = 256 };

struct identity_token {
    unsigned char bytes[IDENTITY_TOKEN_BYTES_MAX]; /* padded with zeros */
    size_t count;
    enum role role;
};

struct identity {
    struct identity_token tokens[IDENTITY_TOKENS_MAX];
    size_t token_count;
};

/* Read the token file; "" gives no tokens. */
int identity_load(const char *token_file, struct identity *ret_identity, struct error *err);

enum role identity_of_uid(const struct config *config, uint32_t uid);

/* ROLE_NONE when the token is not in the file. Takes the same time for every wrong token. */
enum role identity_of_token(const struct identity *identity, const char *token);

#endif

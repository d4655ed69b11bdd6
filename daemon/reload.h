/* SPDX-License-Identifier: Apache-2.0 */
/* reload.h — SIGHUP: the configuration again, whole or not at all.
 *
 * Threads  loop. Reads two small files; an operator asked for it.
 */
#ifndef MEMD_DAEMON_RELOAD_H
#define MEMD_DAEMON_RELOAD_H

struct server;

/* A file that does not parse, or a bad token file, is logged and changes nothing. Options that need
 * a restart keep their value and are logged. */
void reload_config(struct server *server);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* exchange.h — many requests over one connection, moved by the threads that wait for them.
 *
 * There is no thread of our own. Of the threads in exchange_wait one leads: it alone polls the
 * socket, receives for everybody and reconnects; the others sleep until their ticket is done or
 * they are to lead. Sending never blocks, so any thread does it under the lock.
 *
 * Threads  any; functions with _locked in their name under client->lock
 * Tests    tests/client
 */
#ifndef MEMD_LIBMEMD_EXCHANGE_H
#define MEMD_LIBMEMD_EXCHANGE_H

#include <stdbool.h>

struct memd_client;
struct memd_ticket;

/* Queue the ticket and send what can be sent without waiting. */
void exchange_submit(struct memd_ticket *ticket);

/* Until it is DONE, or its deadline has passed (then it is DONE with MEMD_EDEADLINE). */
void exchange_wait(struct memd_ticket *ticket);

/* Do what can be done without waiting; is it DONE? */
bool exchange_poll(struct memd_ticket *ticket);

/* The holder does not want it any more. */
void exchange_forget(struct memd_ticket *ticket);

/* The outcome is there: wake its holder. */
void exchange_finish_locked(struct memd_ticket *ticket, int status);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* exchange.c — leader and followers over one socket, and the rules of sending again.
 *
 * Why no thread of our own: a library that starts threads takes part in its host's signals, forks
 * and priorities, and a single caller would pay two context switches per request. With the waiting
 * threads as movers a lone caller does sendmsg, poll, recvmsg and nothing else.
 *
 * Invariants
 *   - bytes of two requests never mix: only the head of the queue may be partly sent, and when it
 *     is taken away in that state, the connection is broken
 *   - `fd` is polled without the lock, so only the leader closes it; everybody else sets `broken`
 *   - flight before queue is the order of submission; sending again keeps it, so appends stay
 *     in order
 *
 * A request was surely not done while it has not been sent whole. After that, losing the connection
 * leaves it open; only repeatable requests are sent again then, SENDS_MAX times at most (a request
 * that kills the daemon shall not do so for ever).
 */
#include "clients/libmemd/exchange.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/libmemd/client.h"
#include "clients/libmemd/region.h"
#include "clients/libmemd/rights.h"
#include "proto/method.h"

enum { SENDS_MAX = 8, SEND_PARTS = 64, PAUSE_FIRST_MS = 2, PAUSE_MAX_MS = 200 };
#define NS_PER_MS UINT64_C(1000000)
#define SPIN_NS UINT64_C(50000)
#define NEVER UINT64_MAX

static struct memd_ticket *ticket_at(struct list_link *link)
{
    return LIST_ENTRY(link, struct memd_ticket, link);
}

static void wake_leader(struct memd_client *client)
{
    uint64_t one = 1;
    ssize_t written = write(client->wake_fd, &one, sizeof one);
    (void)written; /* a full counter wakes as well */
}

static void break_connection(struct memd_client *client, const struct error *why)
{
    assert(why->code < 0);
    if (client->fd < 0 || client->broken.code != 0) return;
    client->broken = *why;
    if (client->led) wake_leader(client);
}

void exchange_finish_locked(struct memd_ticket *ticket, int status)
{
    struct memd_client *client = ticket->client;
    assert(ticket->state == TICKET_QUEUED || ticket->state == TICKET_SENT);
    if (ticket->state == TICKET_SENT) client->flight_count--;
    list_remove(&ticket->link);
    receive_forget(&client->receiver, ticket);
    ticket->status = status;
    ticket->state = TICKET_DONE;
    pthread_cond_signal(&ticket->changed);
}

/* ---- sending ---- */

static bool partly_sent(const struct memd_ticket *ticket)
{
    return ticket->part_idx > 0 || ticket->part_offset > 0;
}

static void write_header(struct memd_ticket *ticket)
{
    uint64_t left_ms = 0;
    if (ticket->deadline_ns != NEVER) {
        uint64_t now_ns = clock_monotonic_ns();
        if (ticket->deadline_ns > now_ns) left_ms = (ticket->deadline_ns - now_ns) / NS_PER_MS;
        if (left_ms == 0) left_ms = 1; /* 0 would mean for ever */
        if (left_ms > UINT32_MAX) left_ms = UINT32_MAX;
    }
    struct frame frame = {
        .kind = FRAME_REQUEST,
        .method = (uint16_t)ticket->method,
        .request_id = ticket->request_id,
        .deadline_ms = (uint32_t)left_ms,
        .message_bytes = (uint32_t)ticket->parts[1].iov_len,
        .payload_bytes = ticket->payload_bytes,
    };
    frame_encode(&frame, ticket->header);
}

/* Has the daemon hung up while nothing was going on? Then a request that must not be sent twice is
 * better not sent at all on this connection. */
static bool is_hung_up(int fd)
{
    char byte;
    ssize_t count = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR);
}

static void count_sent(struct memd_ticket *ticket, size_t bytes)
{
    ticket->part_offset += bytes;
    while (ticket->part_idx < ticket->part_count &&
           ticket->part_offset >= ticket->parts[ticket->part_idx].iov_len) {
        ticket->part_offset -= ticket->parts[ticket->part_idx].iov_len;
        ticket->part_idx++;
    }
}

/* Send until the socket takes no more. 1 all sent, 0 not all, negative with err filled. */
static int send_parts(struct memd_client *client, struct memd_ticket *ticket, struct error *err)
{
    while (ticket->part_idx < ticket->part_count) {
        struct iovec parts[SEND_PARTS];
        size_t count = ticket->part_count - ticket->part_idx;
        if (count > SEND_PARTS) count = SEND_PARTS;
        memcpy(parts, ticket->parts + ticket->part_idx, count * sizeof parts[0]);
        parts[0].iov_base = (char *)parts[0].iov_base + ticket->part_offset;
        parts[0].iov_len -= ticket->part_offset;
        bool first = ticket->part_idx == 0 && ticket->part_offset == 0;
        int beside = first && ticket->has_fd ? ticket->send_fd : -1;
        ssize_t sent = rights_send(client->fd, parts, count, beside);
        if (sent < 0 && errno == EAGAIN) return 0;
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return error_set(err, MEMD_ECLOSED, "connection: %s", strerror(errno));
        client->counters.bytes_sent += (size_t)sent;
        count_sent(ticket, (size_t)sent);
    }
    return 1;
}

/* 1 the ticket is in flight now, 0 the socket is full, negative: the connection is broken. */
static int send_ticket(struct memd_client *client, struct memd_ticket *ticket, struct error *err)
{
    if (!partly_sent(ticket)) {
        if (!ticket->repeatable && is_hung_up(client->fd))
            return error_set(err, MEMD_ECLOSED, "the daemon closed the connection");
        write_header(ticket);
        ticket->sends++;
    }
    int rc = send_parts(client, ticket, err);
    if (rc <= 0) return rc;
    list_remove(&ticket->link);
    list_append(&client->flight, &ticket->link);
    client->flight_count++;
    ticket->state = TICKET_SENT;
    return 1;
}

static bool is_too_large(const struct memd_client *client, const struct memd_ticket *ticket)
{
    return ticket->payload_bytes > client->hello.payload_bytes_max ||
           ticket->parts[1].iov_len > client->hello.message_bytes_max;
}

/* What is queued, as far as the daemon and the socket take it. */
static void send_queued(struct memd_client *client)
{
    while (client->fd >= 0 && client->broken.code == 0 && !list_empty(&client->queue) &&
           client->flight_count < client->hello.requests_in_flight_max) {
        struct memd_ticket *ticket = ticket_at(client->queue.next);
        if (is_too_large(client, ticket)) {
            int rc = error_set(&ticket->err, MEMD_ELIMIT,
                               "message of %zu and payload of %" PRIu64
                               " bytes; this daemon takes %" PRIu64 " and %" PRIu64,
                               ticket->parts[1].iov_len, ticket->payload_bytes,
                               client->hello.message_bytes_max, client->hello.payload_bytes_max);
            exchange_finish_locked(ticket, rc);
            continue;
        }
        struct error err = { 0 };
        int rc = send_ticket(client, ticket, &err);
        if (rc < 0) break_connection(client, &err);
        if (rc <= 0) return;
    }
}

/* ---- losing and making the connection ---- */

/* Replies may have come before the end did; the daemon's last words among them say why it
 * closed. */
static void receive_rest(struct memd_client *client)
{
    for (;;) {
        struct error err = { 0 };
        uint64_t before = client->counters.bytes_received;
        int rc = receive_some(client, &err);
        if (rc < 0 && err.code != MEMD_ECLOSED) client->broken = err;
        if (rc < 0 || client->counters.bytes_received == before) return;
    }
}

/* After the loss: to the front of the queue, or to its end with an error. */
static void requeue(struct memd_client *client, struct memd_ticket *ticket)
{
    const struct error *why = &client->broken;
    ticket->part_idx = ticket->part_offset = 0;
    bool was_sent = ticket->state == TICKET_SENT;
    if (why->code != MEMD_ECLOSED) {
        ticket->err = *why;
        exchange_finish_locked(ticket, why->code);
    } else if ((was_sent && !ticket->repeatable) || ticket->sends >= SENDS_MAX) {
        int rc = error_set(&ticket->err, MEMD_ECLOSED, "%s %s: %.120s", method_name(ticket->method),
                           was_sent ? "was sent, but its answer is lost" : "could not be sent",
                           why->text);
        exchange_finish_locked(ticket, rc);
    } else if (was_sent) {
        list_remove(&ticket->link);
        client->flight_count--;
        ticket->state = TICKET_QUEUED;
        list_append(client->queue.next, &ticket->link); /* before the first */
    }
}

/* Leader only. */
static void close_broken(struct memd_client *client)
{
    receive_rest(client);
    close(client->fd);
    client->fd = -1;
    receive_reset(&client->receiver);
    if (!list_empty(&client->queue) && partly_sent(ticket_at(client->queue.next)))
        requeue(client, ticket_at(client->queue.next));
    while (!list_empty(&client->flight)) requeue(client, ticket_at(client->flight.prev));
    assert(client->flight_count == 0);
    client->broken = (struct error){ 0 };
}

/* Would it be the same a moment later? */
static bool is_permanent(int code)
{
    return code == MEMD_EPERM || code == MEMD_EVERSION || code == MEMD_EPROTO ||
           code == MEMD_EUNSUPPORTED;
}

static void dial_failed(struct memd_client *client, const struct error *why)
{
    client->dial_error = *why;
    uint32_t pause_ms = client->dial_pause_ms == 0 ? PAUSE_FIRST_MS : 2 * client->dial_pause_ms;
    client->dial_pause_ms = pause_ms < PAUSE_MAX_MS ? pause_ms : PAUSE_MAX_MS;
    client->dial_not_before_ns = clock_monotonic_ns() + client->dial_pause_ms * NS_PER_MS;
    if (!is_permanent(why->code)) return;
    while (!list_empty(&client->queue)) {
        struct memd_ticket *ticket = ticket_at(client->queue.next);
        ticket->err = *why;
        exchange_finish_locked(ticket, why->code);
    }
}

/* Requests that name a region which this daemon does not take. */
static void refuse_named(struct memd_client *client, const struct dial_share *share)
{
    LIST_FOR_SAFE (link, after, &client->queue) {
        struct memd_ticket *ticket = ticket_at(link);
        bool names = false;
        for (size_t i = 0; i < TICKET_NAMED; i++) names |= ticket->named[i] == share->number;
        if (!names) continue;
        int rc = error_set(&ticket->err, share->refused.code,
                           "shared memory was not taken again by the daemon: %.120s",
                           share->refused.text);
        exchange_finish_locked(ticket, rc);
    }
}

/* Leader only; without the lock while it dials. */
static void reconnect(struct memd_client *client, uint64_t deadline_ns)
{
    int fd = -1;
    struct dial_hello hello;
    struct error err = { 0 };
    CLEANUP(dial_shares_fini) struct dial_shares shares = { .count = 0 };
    int rc = region_snapshot_locked(client, &shares, &err);
    pthread_mutex_unlock(&client->lock);
    if (rc == 0) rc = dial(&client->target, &shares, deadline_ns, &fd, &hello, &err);
    pthread_mutex_lock(&client->lock);
    if (rc < 0) {
        dial_failed(client, &err);
        return;
    }
    if (!region_settle_locked(client, &shares)) {
        close(fd); /* and dial again */
        return;
    }
    client->fd = fd;
    client->hello = hello;
    client->dial_pause_ms = 0;
    client->dial_not_before_ns = 0;
    client->dial_error = (struct error){ 0 };
    client->counters.reconnects++;
    receive_reset(&client->receiver);
    for (size_t i = 0; i < shares.count; i++)
        if (shares.items[i].refused.code < 0) refuse_named(client, &shares.items[i]);
}

/* ---- leading ---- */

static int poll_timeout(uint64_t until_ns)
{
    if (until_ns == NEVER) return -1;
    uint64_t now_ns = clock_monotonic_ns();
    if (until_ns <= now_ns) return 0;
    uint64_t left_ms = (until_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS;
    return left_ms > INT32_MAX ? INT32_MAX : (int)left_ms;
}

/* poll, but look for SPIN_NS before sleeping where the last answer came about that soon: waking a
 * core that sleeps costs more than a small answer takes (docs/decisions/0021). */
static int poll_soon(struct memd_client *client, struct pollfd *polled, nfds_t count,
                     int timeout_ms)
{
    if (timeout_ms == 0) return poll(polled, count, 0);
    uint64_t begin_ns = clock_monotonic_ns(), now_ns = begin_ns;
    int ready = 0;
    while (client->answers_soon && ready == 0 && now_ns < begin_ns + SPIN_NS) {
        ready = poll(polled, count, 0);
        if (ready == 0) sched_yield(); /* whoever else wants the core */
        now_ns = clock_monotonic_ns();
    }
    if (ready == 0) ready = poll(polled, count, timeout_ms);
    client->answers_soon = ready > 0 && clock_monotonic_ns() - begin_ns < 2 * SPIN_NS;
    return ready;
}

/* Leader only: sleep without the lock until something can be done or `until_ns`. */
static void poll_connection(struct memd_client *client, uint64_t until_ns)
{
    client->leader_sends = client->fd >= 0 && !list_empty(&client->queue) &&
                           client->flight_count < client->hello.requests_in_flight_max;
    short events = (short)(POLLIN | (client->leader_sends ? POLLOUT : 0));
    struct pollfd polled[2] = { { .fd = client->wake_fd, .events = POLLIN },
                                { .fd = client->fd, .events = events } };
    pthread_mutex_unlock(&client->lock);
    int count = poll_soon(client, polled, client->fd >= 0 ? 2 : 1, poll_timeout(until_ns));
    if (count > 0 && polled[0].revents != 0) {
        uint64_t wakes;
        ssize_t ignored = read(client->wake_fd, &wakes, sizeof wakes);
        (void)ignored;
    }
    pthread_mutex_lock(&client->lock);
    client->leader_sends = false;
    if (count <= 0 || (polled[1].revents & ~POLLOUT) == 0 || client->broken.code != 0) return;
    struct error err = { 0 };
    if (receive_some(client, &err) < 0) break_connection(client, &err);
}

/* One step of whatever comes next, waiting until `until_ns` at most. */
static void lead(struct memd_client *client, const struct memd_ticket *ticket, uint64_t until_ns)
{
    if (client->broken.code != 0) close_broken(client);
    if (client->fd < 0 && ticket->state != TICKET_DONE) {
        uint64_t begin_ns = client->dial_not_before_ns;
        if (clock_monotonic_ns() < begin_ns)
            poll_connection(client, begin_ns < until_ns ? begin_ns : until_ns);
        else
            reconnect(client, ticket->deadline_ns);
        return;
    }
    send_queued(client);
    if (client->broken.code == 0 && ticket->state != TICKET_DONE) poll_connection(client, until_ns);
}

/* The thread that led goes: wake one that waits, so that it leads. */
static void hand_over(struct memd_client *client)
{
    if (client->waiters == 0) return;
    struct list_link *heads[2] = { &client->flight, &client->queue };
    for (int i = 0; i < 2; i++) {
        LIST_FOR (link, heads[i]) {
            if (!ticket_at(link)->waiting) continue;
            pthread_cond_signal(&ticket_at(link)->changed);
            return;
        }
    }
}

/* Take the ticket from the exchange before its reply came. */
static void withdraw(struct memd_ticket *ticket, int status)
{
    struct memd_client *client = ticket->client;
    if (ticket->state == TICKET_QUEUED && partly_sent(ticket)) {
        struct error why = { 0 };
        error_set(&why, MEMD_ECLOSED, "a request was given up while it was being sent");
        break_connection(client, &why);
    }
    exchange_finish_locked(ticket, status);
}

static bool is_expired(const struct memd_ticket *ticket)
{
    return ticket->deadline_ns != NEVER && clock_monotonic_ns() >= ticket->deadline_ns;
}

static void expire(struct memd_ticket *ticket)
{
    struct memd_client *client = ticket->client;
    const struct error *dial_error = &client->dial_error;
    int rc = error_set(&ticket->err, MEMD_EDEADLINE, "no answer to %s within %u ms%s%.120s",
                       method_name(ticket->method), (unsigned)client->timeout_ms,
                       dial_error->code != 0 ? "; " : "", dial_error->text);
    withdraw(ticket, rc);
}

static void sleep_until_changed(struct memd_client *client, struct memd_ticket *ticket)
{
    if (ticket->deadline_ns == NEVER)
        pthread_cond_wait(&ticket->changed, &client->lock);
    else
        clock_cond_wait(&ticket->changed, &client->lock, ticket->deadline_ns);
}

/* ---- what the calls use ---- */

void exchange_submit(struct memd_ticket *ticket)
{
    struct memd_client *client = ticket->client;
    assert(ticket->state == TICKET_BUILDING && ticket->place != NULL);
    pthread_mutex_lock(&client->lock);
    ticket->deadline_ns = client->timeout_ms == MEMD_NO_TIMEOUT
                              ? NEVER
                              : clock_monotonic_ns() + client->timeout_ms * NS_PER_MS;
    ticket->request_id = client->next_id++;
    ticket->state = TICKET_QUEUED;
    list_append(&client->queue, &ticket->link);
    client->counters.requests++;
    send_queued(client);
    if (client->led && !client->leader_sends && !list_empty(&client->queue)) wake_leader(client);
    pthread_mutex_unlock(&client->lock);
}

void exchange_wait(struct memd_ticket *ticket)
{
    struct memd_client *client = ticket->client;
    pthread_mutex_lock(&client->lock);
    assert(ticket->state != TICKET_BUILDING);
    ticket->waiting = true;
    client->waiters++;
    while (ticket->state != TICKET_DONE) {
        if (is_expired(ticket)) {
            expire(ticket);
        } else if (client->led) {
            sleep_until_changed(client, ticket);
        } else {
            client->led = true;
            lead(client, ticket, ticket->deadline_ns);
            client->led = false;
        }
    }
    ticket->waiting = false;
    client->waiters--;
    if (!client->led) hand_over(client);
    pthread_mutex_unlock(&client->lock);
}

bool exchange_poll(struct memd_ticket *ticket)
{
    struct memd_client *client = ticket->client;
    pthread_mutex_lock(&client->lock);
    if (ticket->state != TICKET_DONE && is_expired(ticket)) {
        expire(ticket);
    } else if (ticket->state != TICKET_DONE && !client->led) {
        client->led = true;
        lead(client, ticket, 0);
        client->led = false;
        hand_over(client);
    }
    bool done = ticket->state == TICKET_DONE;
    pthread_mutex_unlock(&client->lock);
    return done;
}

void exchange_forget(struct memd_ticket *ticket)
{
    struct memd_client *client = ticket->client;
    pthread_mutex_lock(&client->lock);
    if (ticket->state == TICKET_QUEUED || ticket->state == TICKET_SENT)
        withdraw(ticket, MEMD_ECANCELLED);
    pthread_mutex_unlock(&client->lock);
}

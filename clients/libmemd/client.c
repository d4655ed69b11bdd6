/* SPDX-License-Identifier: Apache-2.0 */
/* client.c — the life of a client. Everything it allocates is here, so that close is the mirror of
 * connect. */
#include "clients/libmemd/client.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "clients/libmemd/region.h"

enum { TIMEOUT_DEFAULT_MS = 30000 };
#define NS_PER_MS UINT64_C(1000000)

static int open_parts(struct memd_client *client, const char *address,
                      const struct memd_options *options, struct error *err)
{
    const char *token = options->token != NULL ? options->token : "";
    const char *name = options->client_name != NULL ? options->client_name : "libmemd";
    client->target.token = strdup(token);
    client->target.client_name = strdup(name);
    client->receiver.buffer = malloc(RECEIVE_BUFFER_BYTES);
    if (client->target.token == NULL || client->target.client_name == NULL ||
        client->receiver.buffer == NULL) {
        return error_set(err, MEMD_ENOMEM, "no memory for a client");
    }
    int rc = dial_parse(address, &client->target, err);
    if (rc < 0) return rc;
    client->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (client->wake_fd < 0) return error_set(err, MEMD_EIO, "eventfd: %s", strerror(errno));
    uint64_t deadline_ns = client->timeout_ms == MEMD_NO_TIMEOUT
                               ? UINT64_MAX
                               : clock_monotonic_ns() + client->timeout_ms * NS_PER_MS;
    return dial(&client->target, NULL, deadline_ns, &client->fd, &client->hello, err);
}

static struct memd_client *make(void)
{
    struct memd_client *client = calloc(1, sizeof *client);
    if (client == NULL || pthread_mutex_init(&client->lock, NULL) != 0) {
        free(client);
        return NULL;
    }
    client->magic = CLIENT_MAGIC;
    client->fd = client->wake_fd = -1;
    client->next_id = DIAL_REQUEST_ID + 1;
    list_init(&client->queue);
    list_init(&client->flight);
    list_init(&client->spare);
    list_init(&client->regions);
    receive_reset(&client->receiver);
    return client;
}

int memd_connect(const char *address, const struct memd_options *options,
                 struct memd_client **ret_client, struct memd_error *err)
{
    static const struct memd_options defaults;
    if (options == NULL) options = &defaults;
    struct error detail = { 0 };
    struct memd_client *client = make();
    if (client == NULL)
        return ticket_report(MEMD_ENOMEM, &(struct error){ .code = MEMD_ENOMEM }, err);
    client->timeout_ms = options->timeout_ms == 0 ? TIMEOUT_DEFAULT_MS : options->timeout_ms;
    int rc = address == NULL ? error_set(&detail, MEMD_EINVAL, "no address")
                             : open_parts(client, address, options, &detail);
    if (rc < 0) {
        memd_close(client);
        return ticket_report(rc, &detail, err);
    }
    *ret_client = client;
    return 0;
}

void memd_close(struct memd_client *client)
{
    if (client == NULL) return;
    assert(client->magic == CLIENT_MAGIC);
    assert(list_empty(&client->queue) && list_empty(&client->flight)); /* all tickets were freed */
    assert(!client->led);
    for (struct list_link *link; (link = list_take_first(&client->spare)) != NULL;)
        ticket_destroy(LIST_ENTRY(link, struct memd_ticket, link));
    region_free_all(client);
    close_fd(&client->fd);
    close_fd(&client->wake_fd);
    dial_fini(&client->target);
    free(client->receiver.buffer);
    pthread_mutex_destroy(&client->lock);
    client->magic = 0;
    free(client);
}

void memd_get_counters(struct memd_client *client, struct memd_counters *ret_counters)
{
    pthread_mutex_lock(&client->lock);
    *ret_counters = client->counters;
    pthread_mutex_unlock(&client->lock);
}

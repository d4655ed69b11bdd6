/* SPDX-License-Identifier: Apache-2.0 */
/* ticket.c — building a request from parts that stay where they are, and the memory of its result.
 *
 * A result is preceded by a small head with a magic number and its ticket, so that one memd_free
 * serves all kinds of results and stops at a pointer that is none.
 */
#include "clients/libmemd/ticket.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "clients/libmemd/client.h"
#include "clients/libmemd/exchange.h"
#include "clients/libmemd/region.h"
#include "proto/limits.h"

enum {
    SPARE_TICKETS_MAX = 64,
    ARENA_EXTRA_BYTES = 128 << 20, /* messages of 4 MiB unpacked, besides a payload */
    PARTS_FIXED = 2,               /* header, message */
};
#define ARENA_LIMIT_BYTES ((size_t)LIMIT_FRAME_PAYLOAD_BYTES + ARENA_EXTRA_BYTES)

struct result_head {
    uint32_t magic;
    struct memd_ticket *ticket;
    max_align_t result[];
};

static struct memd_ticket *make(void)
{
    struct memd_ticket *ticket = calloc(1, sizeof *ticket);
    if (ticket == NULL) return NULL;
    clock_cond_init(&ticket->changed);
    arena_init(&ticket->arena, ARENA_LIMIT_BYTES);
    return ticket;
}

void ticket_destroy(struct memd_ticket *ticket)
{
    arena_fini(&ticket->arena);
    pthread_cond_destroy(&ticket->changed);
    ticket->magic = 0;
    free(ticket);
}

static struct memd_ticket *take_spare(struct memd_client *client)
{
    pthread_mutex_lock(&client->lock);
    struct list_link *link = list_take_first(&client->spare);
    if (link != NULL) client->spare_count--;
    pthread_mutex_unlock(&client->lock);
    return link == NULL ? NULL : LIST_ENTRY(link, struct memd_ticket, link);
}

struct memd_ticket *ticket_new(struct memd_client *client, unsigned method, size_t tensors)
{
    assert(client->magic == CLIENT_MAGIC);
    struct memd_ticket *ticket = take_spare(client);
    if (ticket == NULL) ticket = make();
    if (ticket == NULL) return NULL;
    ticket->magic = TICKET_MAGIC;
    ticket->client = client;
    ticket->method = method;
    ticket->state = TICKET_BUILDING;
    ticket->repeatable = true;
    ticket->part_limit = PARTS_FIXED + 2 * tensors; /* each may need padding before it */
    ticket->parts = ticket_alloc(ticket, ticket->part_limit, sizeof *ticket->parts);
    ticket->part_count = PARTS_FIXED;
    if (ticket->parts != NULL) return ticket;
    memd_ticket_free(ticket);
    return NULL;
}

/* Make it as new, but for its condition and the first block of its arena. */
static void clear(struct memd_ticket *ticket)
{
    arena_reset(&ticket->arena);
    size_t kept = offsetof(struct memd_ticket, magic);
    memset((char *)ticket + kept, 0, sizeof *ticket - kept);
}

void memd_ticket_free(struct memd_ticket *ticket)
{
    if (ticket == NULL) return;
    assert(ticket->magic == TICKET_MAGIC);
    struct memd_client *client = ticket->client;
    exchange_forget(ticket);
    clear(ticket);
    pthread_mutex_lock(&client->lock);
    bool keep = client->spare_count < SPARE_TICKETS_MAX;
    if (keep) {
        list_append(&client->spare, &ticket->link);
        client->spare_count++;
    }
    pthread_mutex_unlock(&client->lock);
    if (!keep) ticket_destroy(ticket);
}

void *ticket_alloc(struct memd_ticket *ticket, size_t count, size_t bytes)
{
    void *memory = arena_calloc(&ticket->arena, count, bytes);
    if (memory == NULL) {
        ticket->status = error_set(&ticket->err, MEMD_ENOMEM, "no memory for %zu times %zu bytes",
                                   count, bytes);
    }
    return memory;
}

/* ---- the request ---- */

/* SIZE_MAX: more than there can be. */
static size_t array_bytes(const struct ticket_array *array)
{
    size_t bytes = dtype_bytes(array->dtype);
    for (uint32_t i = 0; i < array->dims; i++) {
        if (__builtin_mul_overflow(bytes, array->shape[i], &bytes)) return SIZE_MAX;
    }
    return bytes;
}

/* Of more than these the daemon says itself that it does not have one. */
static void note_region(struct memd_ticket *ticket, uint64_t number)
{
    size_t i = 0;
    while (i < TICKET_NAMED && ticket->named[i] != 0 && ticket->named[i] != number) i++;
    if (i < TICKET_NAMED) ticket->named[i] = number;
}

int ticket_into(struct memd_ticket *ticket, const struct ticket_array *array,
                Memd__Tensor **ret_wire)
{
    *ret_wire = NULL;
    struct region_at at;
    int rc = region_locate(ticket->client, array->data, array_bytes(array), &at, &ticket->err);
    if (rc < 0 || at.number == 0) return rc;
    Memd__Tensor *wire = message_make_tensor(&ticket->arena, array->dtype, array->dims,
                                             array->shape, at.offset);
    if (wire == NULL)
        return error_set(&ticket->err, MEMD_ENOMEM, "no memory to describe %s", array->what);
    wire->region = at.number;
    note_region(ticket, at.number);
    *ret_wire = wire;
    return 0;
}

int ticket_tensor(struct memd_ticket *ticket, const struct ticket_array *array,
                  Memd__Tensor **ret_wire)
{
    size_t bytes = array_bytes(array);
    int rc = ticket_into(ticket, array, ret_wire);
    if (rc < 0 || *ret_wire != NULL) return rc;
    uint64_t cursor = ticket->payload_bytes;
    if (bytes > LIMIT_FRAME_PAYLOAD_BYTES || cursor > LIMIT_FRAME_PAYLOAD_BYTES - bytes) {
        return error_set(&ticket->err, MEMD_ELIMIT,
                         "%s of %zu bytes after %llu others; a request "
                         "holds %llu",
                         array->what, bytes, (unsigned long long)cursor,
                         (unsigned long long)LIMIT_FRAME_PAYLOAD_BYTES);
    }
    uint64_t offset = message_place(&ticket->payload_bytes, bytes);
    static const unsigned char zeros[LIMIT_PAYLOAD_ALIGN];
    assert(ticket->parts != NULL && ticket->part_count + 2 <= ticket->part_limit);
    if (offset > cursor) {
        ticket->parts[ticket->part_count++] = (struct iovec){ (void *)zeros,
                                                              (size_t)(offset - cursor) };
    }
    ticket->parts[ticket->part_count++] = (struct iovec){ (void *)array->data, bytes };
    *ret_wire = message_make_tensor(&ticket->arena, array->dtype, array->dims, array->shape,
                                    offset);
    if (*ret_wire != NULL) return 0;
    return error_set(&ticket->err, MEMD_ENOMEM, "no memory to describe %s", array->what);
}

int ticket_pack(struct memd_ticket *ticket, const ProtobufCMessage *message)
{
    if (ticket->status < 0) return ticket->status;
    unsigned char *data = NULL;
    size_t bytes = 0;
    int rc = message_pack(message, &ticket->arena, &data, &bytes, &ticket->err);
    if (rc < 0) return rc;
    ticket->parts[0] = (struct iovec){ ticket->header, sizeof ticket->header };
    ticket->parts[1] = (struct iovec){ data, bytes };
    return 0;
}

/* ---- the reply ---- */

static int add_segment(struct memd_ticket *ticket, unsigned char *at, size_t bytes)
{
    if (ticket->segment_count == ticket->segment_limit) {
        size_t limit = ticket->segment_limit == 0 ? 8 : 2 * ticket->segment_limit;
        struct segment *more = ticket_alloc(ticket, limit, sizeof *more);
        if (more == NULL) return ticket->status;
        if (ticket->segment_count > 0)
            memcpy(more, ticket->segments, ticket->segment_count * sizeof *more);
        ticket->segments = more;
        ticket->segment_limit = limit;
    }
    ticket->segments[ticket->segment_count++] = (struct segment){ at, bytes };
    ticket->segment_end += bytes;
    return 0;
}

int ticket_skip(struct memd_ticket *ticket, size_t bytes)
{
    return bytes == 0 ? 0 : add_segment(ticket, NULL, bytes);
}

int ticket_receive(struct memd_ticket *ticket, const Memd__Tensor *wire,
                   const struct message_shape *expect, void *to, void **ret_data)
{
    struct tensor tensor;
    int rc = message_tensor(wire, NULL, (size_t)ticket->reply_bytes, expect, &tensor, &ticket->err);
    if (rc < 0) {
        ticket->err.code = MEMD_EPROTO; /* it is the daemon that was wrong */
        return MEMD_EPROTO;
    }
    if (wire->offset < ticket->segment_end) {
        return error_set(&ticket->err, MEMD_EPROTO, "%s of the reply lies before what it follows",
                         expect->what);
    }
    size_t gap = (size_t)(wire->offset - ticket->segment_end), bytes = tensor_bytes(&tensor);
    rc = ticket_skip(ticket, gap);
    if (rc < 0) return rc;
    if (to == NULL) to = arena_alloc_aligned(&ticket->arena, bytes, LIMIT_PAYLOAD_ALIGN);
    if (to == NULL)
        return error_set(&ticket->err, MEMD_ENOMEM, "no memory for %zu bytes of %s", bytes,
                         expect->what);
    rc = add_segment(ticket, to, bytes);
    if (rc == 0) *ret_data = to;
    return rc;
}

void *ticket_result(struct memd_ticket *ticket, size_t count, size_t bytes)
{
    size_t total = 0;
    if (__builtin_mul_overflow(count, bytes, &total) ||
        __builtin_add_overflow(total, sizeof(struct result_head), &total))
        total = SIZE_MAX;
    struct result_head *head = ticket_alloc(ticket, 1, total);
    if (head == NULL) return NULL;
    *head = (struct result_head){ .magic = RESULT_MAGIC, .ticket = ticket };
    ticket->result = head->result;
    ticket->result_count = count;
    return ticket->result;
}

struct memd_ticket *ticket_of_result(const void *result)
{
    const struct result_head *head = (const void *)((const char *)result -
                                                    offsetof(struct result_head, result));
    assert(head->magic == RESULT_MAGIC);
    assert(head->ticket->magic == TICKET_MAGIC);
    return head->ticket;
}

void memd_free(const void *result)
{
    if (result != NULL) memd_ticket_free(ticket_of_result(result));
}

/* ---- the ends ---- */

int ticket_report(int code, const struct error *from, struct memd_error *err)
{
    assert(code < 0);
    if (err == NULL) return code;
    err->code = code;
    const char *text = from->text[0] != '\0' ? from->text : error_text(code);
    size_t bytes = strnlen(text, sizeof err->text - 1);
    memcpy(err->text, text, bytes);
    err->text[bytes] = '\0';
    return code;
}

int ticket_ask(struct memd_client *client, const struct ticket_question *question,
               const void **ret_result, struct memd_error *err)
{
    struct memd_ticket *ticket = ticket_new(client, question->method, 0);
    int rc = 0;
    if (ticket != NULL) {
        ticket->repeatable = question->repeatable;
        ticket->place = question->place;
        rc = ticket_pack(ticket, question->request);
    }
    rc = ticket_call(ticket, rc, err);
    if (rc == 0) *ret_result = ticket->result;
    return rc;
}

int ticket_start(struct memd_ticket *ticket, int rc, struct memd_ticket **ret_ticket,
                 struct memd_error *err)
{
    static const struct error no_memory = { .code = MEMD_ENOMEM };
    if (ticket == NULL) return ticket_report(MEMD_ENOMEM, &no_memory, err);
    if (rc < 0) {
        ticket_report(rc, &ticket->err, err);
        memd_ticket_free(ticket);
        return rc;
    }
    exchange_submit(ticket);
    *ret_ticket = ticket;
    return 0;
}

int ticket_call(struct memd_ticket *ticket, int rc, struct memd_error *err)
{
    rc = ticket_start(ticket, rc, &ticket, err);
    if (rc < 0) return rc;
    rc = memd_wait(ticket, err);
    if (rc < 0) memd_ticket_free(ticket);
    return rc;
}

int memd_wait(struct memd_ticket *ticket, struct memd_error *err)
{
    assert(ticket->magic == TICKET_MAGIC);
    exchange_wait(ticket);
    return ticket->status < 0 ? ticket_report(ticket->status, &ticket->err, err) : 0;
}

int memd_poll(struct memd_ticket *ticket)
{
    assert(ticket->magic == TICKET_MAGIC);
    return exchange_poll(ticket) ? 1 : 0;
}

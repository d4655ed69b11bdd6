/* SPDX-License-Identifier: Apache-2.0 */
/* op_dump.c — records as people read them, a page at a time. */
#include "base/error.h"
#include "daemon/dispatch.h"
#include "daemon/request.h"
#include "daemon/server.h"
#include "daemon/wire.h"

static int encode(struct request *req, const struct dump_step *step, Memd__DumpReply *reply,
                  struct error *err)
{
    reply->records = arena_calloc(&req->arena, step->record_count, sizeof(Memd__Record *));
    Memd__Record *records = arena_calloc(&req->arena, step->record_count, sizeof *records);
    if (reply->records == NULL || records == NULL) return wire_no_memory(err);
    for (size_t i = 0; i < step->record_count; i++) {
        records[i] = (Memd__Record)MEMD__RECORD__INIT;
        records[i].table = (char *)step->records[i].table;
        records[i].key = step->records[i].key;
        records[i].summary = step->records[i].summary;
        records[i].bytes = step->records[i].bytes;
        reply->records[i] = &records[i];
    }
    reply->n_records = step->record_count;
    reply->cursor.data = (uint8_t *)step->cursor;
    reply->cursor.len = step->cursor_bytes;
    return 0;
}

static int run(struct request *req, struct error *err)
{
    const Memd__DumpRequest *in = (const Memd__DumpRequest *)req->in;
    struct dump_step step = { 0 };
    struct walk_args args = { 0 };
    int rc = wire_decode_walk(in->context_id, &in->cursor, &args, err);
    args.limit = in->limit;
    if (rc == 0) rc = catalog_dump(req->server->catalog, &args, &req->arena, &step, err);
    Memd__DumpReply reply = MEMD__DUMP_REPLY__INIT;
    if (rc == 0) rc = encode(req, &step, &reply, err);
    return rc < 0 ? rc : request_reply(req, &reply.base, NULL, 0, err);
}

const struct operation operation_dump = { .run = run };

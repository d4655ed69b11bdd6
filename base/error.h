/* SPDX-License-Identifier: Apache-2.0 */
/* error.h — the one list of everything that can go wrong, and the object that carries the detail.
 *
 * A function that can fail returns 0 or one of the negative codes below and, when the caller passed
 * one, fills `struct error` with a sentence for a human. Libraries never log and never exit: they
 * return. Programmer errors are asserts (kept in release builds); only input, the outside world and
 * limits are errors.
 *
 * The values are part of the wire protocol (docs/PROTOCOL.md, "Errors") and of the public header
 * (clients/include/memd.h): they are never renumbered, new ones are added at the end.
 *
 * Threads  every function here is pure or works on the caller's object only.
 * Tests    tests/unit/test_error.c; tests/tidy.py checks that every code is documented and raised
 *          in a test.
 */
#ifndef MEMD_BASE_ERROR_H
#define MEMD_BASE_ERROR_H

/* X(name, wire value, text) */
#define ERROR_MAP(X)                                                                               \
    X(EINVAL, -1, "invalid argument")                                                              \
    X(ESHAPE, -2, "shape, count or dtype does not fit the model")                                  \
    X(EPOSITION, -3, "position does not continue what is stored")                                  \
    X(ENONFINITE, -4, "NaN or infinity in input")                                                  \
    X(ENOCONTEXT, -5, "no such context")                                                           \
    X(EEXIST, -6, "context exists already")                                                        \
    X(EMISMATCH, -7, "model or method differs from the stored one")                                \
    X(ENOROW, -8, "row is not stored")                                                             \
    X(EPROTO, -9, "malformed frame or message")                                                    \
    X(EVERSION, -10, "protocol or format version is not supported")                                \
    X(EUNSUPPORTED, -11, "not supported by this build, method or context")                         \
    X(EPERM, -12, "not permitted for this client")                                                 \
    X(EBUSY, -13, "too much work at once, try again")                                              \
    X(ELIMIT, -14, "a limit was exceeded")                                                         \
    X(EFULL, -15, "no space left: disk, map or byte budget")                                       \
    X(ENOMEM, -16, "out of memory")                                                                \
    X(EIO, -17, "input or output failed")                                                          \
    X(ECORRUPT, -18, "stored bytes do not match their checksum or header")                         \
    X(EDEADLINE, -19, "deadline passed before the answer was ready")                               \
    X(ECANCELLED, -20, "cancelled")                                                                \
    X(EDRAINING, -21, "daemon is draining and takes no new work")                                  \
    X(ECLOSED, -22, "connection closed")                                                           \
    X(ELOCKED, -23, "data directory is in use by another daemon")                                  \
    X(EDEVICE, -24, "accelerator failed")

/* the public header spells this enum out; clients/libmemd/codes.c compares the two */
#ifndef MEMD_H
enum memd_code {
#define X(name, value, text) MEMD_##name = (value),
    ERROR_MAP(X)
#undef X
};
#endif

enum { ERROR_TEXT_BYTES = 256 };

/* Detail of the first failure. `code` is 0 while nothing has failed. Owned by the caller, no
 * resources. */
struct error {
    int code;
    char text[ERROR_TEXT_BYTES];
};

/* Record `code` with a formatted sentence and return `code`, so that `return error_set(err, …)`
 * reads as one step. `err` may be NULL. The text is cut, never overrun. */
int error_set(struct error *err, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The symbolic name ("MEMD_EBUSY") and the general sentence of a code; "MEMD_E?" / "unknown error"
 * for values that are not in the list. Never NULL, static storage. */
const char *error_name(int code);
const char *error_text(int code);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/* list.h — intrusive doubly linked ring: the head is a link that points to itself when the list is
 * empty.
 *
 * A zeroed link is "in no list"; list_remove leaves it so, and removing twice is harmless.
 */
#ifndef MEMD_BASE_LIST_H
#define MEMD_BASE_LIST_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>

struct list_link {
    struct list_link *next, *prev;
};

#define LIST_ENTRY(link, type, member) ((type *)(void *)((char *)(link) - offsetof(type, member)))

#define LIST_FOR(link, head) \
    for (struct list_link *link = (head)->next; link != (head); link = link->next)

/* Safe against removal of `link` inside the loop. */
#define LIST_FOR_SAFE(link, after, head)                                                   \
    for (struct list_link *link = (head)->next, *after = link->next; link != (head); \
         link = after, after = link->next)

static inline void list_init(struct list_link *head) { head->next = head->prev = head; }

static inline bool list_empty(const struct list_link *head) { return head->next == head; }

static inline bool list_linked(const struct list_link *link) { return link->next != NULL; }

static inline void list_append(struct list_link *head, struct list_link *link)
{
    assert(!list_linked(link));
    link->prev = head->prev;
    link->next = head;
    head->prev->next = link;
    head->prev = link;
}

static inline void list_remove(struct list_link *link)
{
    if (!list_linked(link)) return;
    link->prev->next = link->next;
    link->next->prev = link->prev;
    link->next = link->prev = NULL;
}

/* The first link, taken out; NULL when empty. */
static inline struct list_link *list_take_first(struct list_link *head)
{
    if (list_empty(head)) return NULL;
    struct list_link *first = head->next;
    list_remove(first);
    return first;
}

#endif

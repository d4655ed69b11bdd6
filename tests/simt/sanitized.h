/* SPDX-License-Identifier: Apache-2.0 */
/* sanitized.h — what sanitizers must be told of stacks that a program switches by itself.
 *
 * AddressSanitizer wants to know which stack is in use, and is told before a switch and after it.
 * ThreadSanitizer keeps a list of the calls of each thread: with fibers it would grow by every one
 * that waits in the middle of its calls, until it is written over; so each fiber is a thread to it.
 * A switch orders what was done before it and after it, as one thread does.
 */
#ifndef MEMD_TESTS_SIMT_SANITIZED_H
#define MEMD_TESTS_SIMT_SANITIZED_H

#include <stddef.h>

/* A stack that is switched to and from. Zeros, and its place, before it is used. */
struct stack {
    const void *bottom;
    size_t bytes;
    void *noted; /* by the sanitizer */
};

#if defined(__SANITIZE_ADDRESS__)
#define STACKS_ADDRESS 1
#elif defined(__SANITIZE_THREAD__)
#define STACKS_THREAD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STACKS_ADDRESS 1
#elif __has_feature(thread_sanitizer)
#define STACKS_THREAD 1
#endif
#endif

/* stack_of_thread  the stack of the thread that runs, before it switches for the first time
 * stack_begins     nothing ran on it yet
 * stack_ends       whatever was running there never goes on
 * stack_leave      immediately before the switch
 * stack_arrive     immediately behind it, on the new stack; `from`: where it came from
 *
 * No functions: ThreadSanitizer would take a call on one stack and its return on another. */
#if defined(STACKS_ADDRESS)

#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define stack_of_thread(stack) ((void)(stack)) /* told by the first arrival elsewhere */
#define stack_begins(stack) ((void)((stack)->noted = NULL))
#define stack_ends(stack) __asan_unpoison_memory_region((stack)->bottom, (stack)->bytes)
#define stack_leave(stack, to) \
    __sanitizer_start_switch_fiber(&(stack)->noted, (to)->bottom, (to)->bytes)
#define stack_arrive(stack, from) \
    __sanitizer_finish_switch_fiber((stack)->noted, &(from)->bottom, &(from)->bytes)

#elif defined(STACKS_THREAD)

#include <sanitizer/tsan_interface.h>
#define stack_of_thread(stack) ((void)((stack)->noted = __tsan_get_current_fiber()))
#define stack_begins(stack) ((void)((stack)->noted = __tsan_create_fiber(0)))
#define stack_ends(stack) __tsan_destroy_fiber((stack)->noted)
#define stack_leave(stack, to) ((void)(stack), __tsan_switch_to_fiber((to)->noted, 0))
#define stack_arrive(stack, from) ((void)(stack), (void)(from))

#else

#define stack_of_thread(stack) ((void)(stack))
#define stack_begins(stack) ((void)(stack))
#define stack_ends(stack) ((void)(stack))
#define stack_leave(stack, to) ((void)(stack), (void)(to))
#define stack_arrive(stack, from) ((void)(stack), (void)(from))

#endif

#endif

/* Memory that runs out, for tests: counts what the library takes, and refuses some of it.
 *
 * The functions here are called in place of the C library's by everything in the process. Two kinds are told apart.
 * Checked: posix_memalign in cache lines, and realloc. The library takes by them what its input decides the size of, and
 * asks whether it got it. Each of these, of any size, is made to fail in turn (memory_runs_out). Unchecked: what Swift's
 * runtime takes, by malloc or with a smaller alignment, for arrays, dictionaries and objects. It ends the process where it
 * gets none, so the library asks for as much in one checked piece before. What that is worth is seen with a limit on all
 * large blocks together, as a container or `ulimit -v` sets it (memory_is_limited). */
#ifndef LOCKSTEP_MEMORY_FAULTS_H
#define LOCKSTEP_MEMORY_FAULTS_H

#include "test.h"

#include <errno.h>
#include <malloc.h>
#include <sched.h>
#include <stdlib.h>
#include <unistd.h>

/* Blocks from this size on are large: the limit is on them alone (docs/Robustness.md). */
enum { MEMORY_LARGE = 144 << 10, MEMORY_LINE = 64 };

/* glibc's own, under the names that only it has. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *memory, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

static int memory_is_armed;
static long memory_live;        /* blocks that were taken and not given back */
static long memory_checked;     /* checked allocations since memory_arm */
static long memory_fail_at;     /* the one of them that fails; 0: none */
static long memory_failures;    /* in the whole program */
static const char *memory_name; /* of the scenario */

/* Large blocks taken since memory_arm. */
enum { MEMORY_BLOCKS = 4096, MEMORY_LEVELS = 256 };
static struct { void *memory; size_t size; } memory_blocks[MEMORY_BLOCKS];
static int memory_lock_taken;
static size_t memory_held, memory_limit; /* bytes; a limit of 0: none */
static size_t memory_levels[MEMORY_LEVELS]; /* what was held after each large block */
static int memory_level_count;

static void memory_lock(void) {
    while (__atomic_exchange_n(&memory_lock_taken, 1, __ATOMIC_ACQUIRE)) sched_yield();
}

static void memory_unlock(void) { __atomic_store_n(&memory_lock_taken, 0, __ATOMIC_RELEASE); }

static size_t memory_refused_unchecked; /* the size of a block that would have ended the process */

/* Whether a large block may be had. */
static int memory_allowed(size_t size, int is_checked) {
    int allowed = 1;
    if (size < MEMORY_LARGE || !__atomic_load_n(&memory_is_armed, __ATOMIC_SEQ_CST)) return 1;
    memory_lock();
    if (memory_limit > 0 && memory_held + size > memory_limit) allowed = 0;
    memory_unlock();
    if (!allowed && !is_checked) { /* it is given all the same, so that one run shows everything */
        memory_refused_unchecked = size;
        return 1;
    }
    if (!allowed) memory_failures++;
    return allowed;
}

static void memory_gone(void *memory) {
    if (!__atomic_load_n(&memory_is_armed, __ATOMIC_SEQ_CST) || malloc_usable_size(memory) < MEMORY_LARGE) return;
    memory_lock();
    for (int i = 0; i < MEMORY_BLOCKS; i++)
        if (memory_blocks[i].memory == memory) {
            memory_held -= memory_blocks[i].size;
            memory_blocks[i].memory = NULL;
            break;
        }
    memory_unlock();
}

static void *memory_taken(void *memory, size_t size) {
    if (memory == NULL) return NULL;
    __atomic_add_fetch(&memory_live, 1, __ATOMIC_SEQ_CST);
    if (size < MEMORY_LARGE || !__atomic_load_n(&memory_is_armed, __ATOMIC_SEQ_CST)) return memory;
    memory_lock();
    for (int i = 0; i < MEMORY_BLOCKS; i++)
        if (memory_blocks[i].memory == NULL) {
            memory_blocks[i].memory = memory;
            memory_blocks[i].size = size;
            memory_held += size;
            break;
        }
    if (memory_level_count < MEMORY_LEVELS) memory_levels[memory_level_count++] = memory_held;
    memory_unlock();
    return memory;
}

/* Whether it is the turn of a checked allocation to fail. */
static int memory_fails(void) {
    if (!__atomic_load_n(&memory_is_armed, __ATOMIC_SEQ_CST)) return 0;
    if (__atomic_add_fetch(&memory_checked, 1, __ATOMIC_SEQ_CST) != memory_fail_at) return 0;
    memory_failures++;
    return 1;
}

void *malloc(size_t size) {
    return memory_allowed(size, 0) ? memory_taken(__libc_malloc(size), size) : NULL;
}

void *calloc(size_t count, size_t size) {
    return memory_allowed(count * size, 0) ? memory_taken(__libc_calloc(count, size), count * size) : NULL;
}

void *realloc(void *memory, size_t size) {
    void *moved;
    if (memory_fails() || !memory_allowed(size, 1)) {
        errno = ENOMEM;
        return NULL;
    }
    moved = __libc_realloc(memory, size);
    if (memory != NULL && moved != NULL) {
        memory_gone(memory);
        __atomic_sub_fetch(&memory_live, 1, __ATOMIC_SEQ_CST);
    }
    return memory_taken(moved, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    const int is_checked = alignment >= MEMORY_LINE;
    if ((is_checked && memory_fails()) || !memory_allowed(size, is_checked)) return ENOMEM;
    *memory = memory_taken(__libc_memalign(alignment, size), size);
    return *memory == NULL ? ENOMEM : 0;
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memory_allowed(size, 0) ? memory_taken(__libc_memalign(alignment, size), size) : NULL;
}

void free(void *memory) {
    if (memory == NULL) return;
    memory_gone(memory);
    __atomic_sub_fetch(&memory_live, 1, __ATOMIC_SEQ_CST);
    __libc_free(memory);
}

static long memory_next_failure;
static size_t memory_next_limit;

static void memory_arm(void) {
    memory_checked = 0;
    memory_held = 0;
    memory_level_count = 0;
    memset(memory_blocks, 0, sizeof memory_blocks);
    memory_fail_at = memory_next_failure;
    memory_limit = memory_next_limit;
    __atomic_store_n(&memory_is_armed, 1, __ATOMIC_SEQ_CST);
}

static void memory_disarm(void) { __atomic_store_n(&memory_is_armed, 0, __ATOMIC_SEQ_CST); }

/* What a scenario does: makes what it needs, makes one call as SHORT_OF_MEMORY(results, call), which writes to `results`,
 * frees everything and returns the call's status. A call that runs out of memory must have written nothing, and is made
 * again, on the same handles: `results` are always those of a call that succeeded. */
typedef lockstep_status (*memory_scenario)(unsigned char *results);

enum { MEMORY_RESULTS = 1 << 22 };

static unsigned char memory_before[MEMORY_RESULTS];
static int memory_calls;
static lockstep_status memory_status;

#define SHORT_OF_MEMORY(results, call) \
    (memory_calls++, memcpy(memory_before, results, MEMORY_RESULTS), memory_arm(), memory_status = (call), \
     memory_disarm(), memory_ran_out(results) ? memory_succeeded(call) : (void)0, memory_status)

static void memory_succeeded(lockstep_status status) { CHECK_OK(status); }

static int memory_ran_out(const unsigned char *results) {
    if (memory_status != LOCKSTEP_ERROR_OUT_OF_MEMORY) return 0;
    CHECK(strstr(lockstep_last_error(), "cannot be had") != NULL);
    CHECK(memcmp(memory_before, results, MEMORY_RESULTS) == 0);
    return 1;
}

static long memory_floor; /* blocks that were live after the last run */

/* One run of a scenario with a failure or a limit; compares its results, and what it holds on to. */
static lockstep_status memory_try(memory_scenario scenario, const unsigned char *expected, const char *what, size_t number) {
    static unsigned char found[MEMORY_RESULTS];
    lockstep_status status;
    memset(found, 0, sizeof found);
    memory_calls = 0;
    status = scenario(found);
    if (memory_calls != 1) test_fail(__FILE__, __LINE__, "%s: is no scenario", memory_name);
    /* A thread that was at work may give its share back a little later. */
    for (int i = 0; i < 2000 && memory_live > memory_floor; i++) usleep(500);
    if (memory_live > memory_floor)
        test_fail(__FILE__, __LINE__, "%s: %s %zu: %ld blocks are left", memory_name, what, number,
                  memory_live - memory_floor);
    memory_floor = memory_live;
    if (memory_refused_unchecked > 0)
        test_fail(__FILE__, __LINE__, "%s: %s %zu: %zu bytes were asked for unchecked", memory_name, what, number,
                  memory_refused_unchecked);
    memory_refused_unchecked = 0;
    if (memcmp(found, expected, sizeof found) != 0)
        test_fail(__FILE__, __LINE__, "%s: %s %zu: the call that succeeded gave other bits", memory_name, what, number);
    if (status != LOCKSTEP_OK && status != LOCKSTEP_ERROR_OUT_OF_MEMORY)
        test_fail(__FILE__, __LINE__, "%s: %s %zu: %s", memory_name, what, number, lockstep_status_name(status));
    return status;
}

/* The results with enough memory; made twice, as what is kept for good is taken by the first. */
static void memory_enough(const char *name, memory_scenario scenario, unsigned char *results) {
    memory_name = name;
    memory_next_failure = 0;
    memory_next_limit = 0;
    for (int i = 0; i < 2; i++) {
        memset(results, 0, MEMORY_RESULTS);
        CHECK_OK(scenario(results));
    }
    usleep(20000);
    memory_floor = memory_live;
}

/* Whether everything is to be tried, and not only some of long rows of failures. */
static int memory_tries_all(void) {
    const char *how_many = getenv("LOCKSTEP_FAULTS");
    return how_many != NULL && strcmp(how_many, "all") == 0;
}

/* Makes each checked allocation of a scenario's call fail in turn, or the first eight and then ever fewer. */
static void memory_runs_out(const char *name, memory_scenario scenario) {
    static unsigned char expected[MEMORY_RESULTS];
    long before = memory_failures, last = 0;
    memory_enough(name, scenario, expected);
    for (memory_next_failure = 1; test_failed_checks <= 20; memory_next_failure += memory_tries_all() ? 1 : 1 + last / 8) {
        last = memory_next_failure;
        memory_try(scenario, expected, "failed allocation", (size_t)last);
        if (memory_checked < last) break;
    }
    printf("    %-28s %4ld allocations failed, up to number %ld\n", name, memory_failures - before, last);
    memory_next_failure = 0;
}

/* Limits the large blocks of a scenario's call to each of the amounts that it comes by, less one byte. */
static void memory_is_limited(const char *name, memory_scenario scenario) {
    static unsigned char expected[MEMORY_RESULTS];
    size_t levels[MEMORY_LEVELS], most = 0;
    int count, refused = 0;
    memory_enough(name, scenario, expected);
    count = memory_level_count;
    memcpy(levels, memory_levels, sizeof levels);
    for (int i = 0; i < count; i++) {
        if (levels[i] > most) most = levels[i];
        if (!memory_tries_all() && count > 6 && i % 3 > 0 && i < count - 1) continue;
        memory_next_limit = levels[i] - 1;
        if (memory_try(scenario, expected, "limit", memory_next_limit) != LOCKSTEP_OK) refused++;
    }
    memory_next_limit = 0;
    printf("    %-28s %9zu bytes, %3d limits, %3d of them too low\n", name, most, count, refused);
}

#endif

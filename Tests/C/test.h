/* What the C tests share: counting, and calls that must be refused.
 *
 * A test program is one file: it includes this, defines functions that use CHECK and REFUSED, and ends
 * with `int main(void) { TEST(one); TEST(two); return test_report(); }`. The last line it prints is
 * "N passed, N failed". */
#ifndef LOCKSTEP_TEST_H
#define LOCKSTEP_TEST_H

#include <lockstep.h>

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static int test_passed, test_failed, test_failed_checks;

/* Prints what failed and where; the test goes on, so that one run shows everything. */
static inline void test_fail(const char *file, int line, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    test_failed_checks++;
    printf("    %s:%d: ", file, line);
    vprintf(format, arguments);
    printf("\n");
    va_end(arguments);
}

#define CHECK(condition) \
    do { \
        if (!(condition)) test_fail(__FILE__, __LINE__, "%s", #condition); \
    } while (0)

/* A call that must succeed; its message is shown if it does not. */
#define CHECK_OK(call) \
    do { \
        lockstep_status test_status = (call); \
        if (test_status != LOCKSTEP_OK) \
            test_fail(__FILE__, __LINE__, "%s: %s: %s", #call, lockstep_status_name(test_status), \
                      lockstep_last_error()); \
    } while (0)

#define TEST(function) \
    do { \
        test_failed_checks = 0; \
        function(); \
        if (test_failed_checks) test_failed++; else test_passed++; \
        printf("%s %s\n", test_failed_checks ? "FAIL" : "ok  ", #function); \
        fflush(stdout); /* what passed is seen even if the next test dies */ \
    } while (0)

/* A test that forks while other threads make calls. ThreadSanitizer has the Swift runtime take a lock at each use of a global,
 * which a child finds taken: it is left out there. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define TEST_OF_FORKS(function) ((void)(function), printf("skip %s\n", #function))
#endif
#endif
#ifndef TEST_OF_FORKS
#define TEST_OF_FORKS TEST
#endif

static inline int test_report(void) {
    printf("%d passed, %d failed\n", test_passed, test_failed);
    return test_failed != 0;
}

/* What outputs hold before a call that must not touch them. */
enum { TEST_CANARY = 0xa5 };

static inline int test_is_canary(const void *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (((const unsigned char *)bytes)[i] != TEST_CANARY) return 0;
    return 1;
}

/* Checks the outcome of a call that must be refused: the status, a message that has `word` in it, and
 * outputs that nobody wrote. */
static inline void test_refused(const char *file, int line, const char *what, lockstep_status status,
                                lockstep_status wanted, const char *word, const void *outputs,
                                size_t size) {
    const char *message = lockstep_last_error();
    if (status != wanted)
        test_fail(file, line, "%s: %s, not %s (%s)", what, lockstep_status_name(status),
                  lockstep_status_name(wanted), message);
    else if (strstr(message, word) == NULL)
        test_fail(file, line, "%s: the message does not name '%s': %s", what, word, message);
    if (!test_is_canary(outputs, size)) test_fail(file, line, "%s: an output was written", what);
}

/* REFUSED(call, KIND, "word", statements): makes the file's `fixture f`, runs the statements that spoil
 * it, fills f.outputs with canaries and calls `lockstep_status call(fixture *)`. */
#define REFUSED(call, kind, word, ...) \
    do { \
        fixture f; \
        fixture_init(&f); \
        __VA_ARGS__; \
        memset(&f.outputs, TEST_CANARY, sizeof f.outputs); \
        test_refused(__FILE__, __LINE__, #call ": " #__VA_ARGS__, call(&f), LOCKSTEP_ERROR_##kind, word, \
                     &f.outputs, sizeof f.outputs); \
    } while (0)

/* WRONG(KIND, "word", call): the same for a call that is written out and needs no fixture_init; it may use f.outputs. */
#define WRONG(kind, word, call) \
    do { \
        fixture f; \
        memset(&f.outputs, TEST_CANARY, sizeof f.outputs); \
        lockstep_status status = (call); \
        test_refused(__FILE__, __LINE__, #call, status, LOCKSTEP_ERROR_##kind, word, &f.outputs, sizeof f.outputs); \
    } while (0)

/* REFUSED's counterpart: a call that must succeed. */
#define ACCEPTED(call, ...) \
    do { \
        fixture f; \
        fixture_init(&f); \
        __VA_ARGS__; \
        CHECK_OK(call(&f)); \
    } while (0)

#endif

// What Swift has no word for: the floating-point mode of a thread, its processors, numbers that threads share, and
// the thread-local error text.
#ifndef LSK_ENVIRONMENT_H
#define LSK_ENVIRONMENT_H

#include <stdint.h>

// Sets round-to-nearest, subnormals on (no flush-to-zero, no denormals-are-zero), exceptions masked;
// returns the mode it found.
uint64_t lsk_float_mode_enter(void);

// Restores a mode that lsk_float_mode_enter returned.
void lsk_float_mode_leave(uint64_t mode);

// The number of processors this process may use, at least 1.
int32_t lsk_available_processors(void);

// Numbers that threads share: each call is one indivisible step, in one order for all of them.
static inline int64_t lsk_shared_load(const int64_t *_Nonnull x) { return __atomic_load_n(x, __ATOMIC_SEQ_CST); }
// Returns the number before the addition.
static inline int64_t lsk_shared_add(int64_t *_Nonnull x, int64_t more) {
    return __atomic_fetch_add(x, more, __ATOMIC_SEQ_CST);
}

// Tells the processor that this thread waits in a loop.
static inline void lsk_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("yield");
#endif
}

// This thread's error text: NUL-terminated, at most 511 bytes, cut at a character.
const char *_Nonnull lsk_error_text(void);
void lsk_set_error_text(const char *_Nonnull text);

#endif

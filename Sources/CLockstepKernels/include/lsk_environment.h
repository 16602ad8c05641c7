// What Swift has no word for: the floating-point mode of a thread, its processors, and the
// thread-local error text.
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

// This thread's error text: NUL-terminated, at most 511 bytes, cut at a character.
const char *_Nonnull lsk_error_text(void);
void lsk_set_error_text(const char *_Nonnull text);

#endif

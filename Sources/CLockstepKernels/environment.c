#define _GNU_SOURCE  // sched_getaffinity
#pragma STDC FP_CONTRACT OFF
#include "lsk_environment.h"

#include <string.h>
#include <unistd.h>
#if defined(__linux__)
#include <sched.h>
#endif

#if defined(__x86_64__)
#include <xmmintrin.h>

// Exceptions masked, round to nearest, FTZ (bit 15) and DAZ (bit 6) off, flags clear.
#define LSK_MXCSR 0x1f80u

uint64_t lsk_float_mode_enter(void) {
    uint32_t found = _mm_getcsr();
    if (found != LSK_MXCSR) _mm_setcsr(LSK_MXCSR);
    return found;
}

void lsk_float_mode_leave(uint64_t mode) { _mm_setcsr((uint32_t)mode); }

#elif defined(__aarch64__)

uint64_t lsk_float_mode_enter(void) {
    uint64_t found, ours = 0;  // FPCR: FZ, FZ16, DN, RMode and trap enables all zero
    __asm__ volatile("mrs %0, fpcr" : "=r"(found));
    __asm__ volatile("msr fpcr, %0" : : "r"(ours));
    return found;
}

void lsk_float_mode_leave(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }

#else
#error "Lockstep runs on x86-64 and aarch64"
#endif

int32_t lsk_available_processors(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count > 0 ? (int32_t)count : 1;
}

static _Thread_local char error_text[512];

const char *lsk_error_text(void) { return error_text; }

// Whether a byte is inside a UTF-8 character, which must not be cut there.
static int is_inside(char byte) { return ((unsigned char)byte & 0xc0) == 0x80; }

// Of a text that is too long (it names a long path) the middle is left out: at its end stands what is wrong.
void lsk_set_error_text(const char *text) {
    size_t length = strlen(text), first = length;
    const char *last = text + length;
    if (length > sizeof error_text - 1) {
        first = sizeof error_text / 2 - 4;
        while (first > 0 && is_inside(text[first])) first--;
        last = text + length - sizeof error_text / 2;
        while (is_inside(*last)) last++;
    }
    memcpy(error_text, text, first);
    if (*last != 0) {
        memcpy(error_text + first, "...", 3);
        first += 3;
    }
    strcpy(error_text + first, last);
}

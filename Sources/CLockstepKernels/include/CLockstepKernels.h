// The C leaf: kernels that need vector instructions Swift cannot ask for, and nothing else.
//
// One body (../Body/*.h) is compiled once for each instruction set, under a target attribute, and
// reached through a table of function pointers. Every kernel gives the same bits in all of them.
#ifndef CLOCKSTEP_KERNELS_H
#define CLOCKSTEP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "lsk_environment.h"

// The instruction sets, with the values of lockstep_instruction_set.
enum { LSK_BASELINE = 1, LSK_AVX2 = 2, LSK_AVX512 = 3, LSK_NEON = 4 };

// Element formats, with the raw values of Swift's `Format`.
enum { LSK_FP32 = 0, LSK_FP16 = 1, LSK_BF16 = 2, LSK_FP64 = 3, LSK_E4M3FN = 4, LSK_E5M2 = 5 };

// All kernels of one instruction set.
typedef struct {
    int32_t instruction_set;
} lsk_kernels;

// The kernels for an instruction set; NULL if this machine, or this build, does not have it.
const lsk_kernels *lsk_kernels_for(int32_t instruction_set);

// The best instruction set of this machine.
int32_t lsk_best_instruction_set(void);

#endif

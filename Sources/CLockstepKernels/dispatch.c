#pragma STDC FP_CONTRACT OFF
#include "CLockstepKernels.h"

extern const lsk_kernels lsk_kernels_baseline;
#if defined(__x86_64__)
extern const lsk_kernels lsk_kernels_avx2, lsk_kernels_avx512;

static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#elif defined(__aarch64__)
extern const lsk_kernels lsk_kernels_neon;
#endif

const lsk_kernels *lsk_kernels_for(int32_t instruction_set) {
    switch (instruction_set) {
    case LSK_BASELINE: return &lsk_kernels_baseline;
#if defined(__x86_64__)
    case LSK_AVX2: return has_avx2() ? &lsk_kernels_avx2 : NULL;
    case LSK_AVX512: return has_avx512() ? &lsk_kernels_avx512 : NULL;
#elif defined(__aarch64__)
    case LSK_NEON: return &lsk_kernels_neon;
#endif
    default: return NULL;
    }
}

int32_t lsk_best_instruction_set(void) {
#if defined(__x86_64__)
    if (has_avx512()) return LSK_AVX512;
    if (has_avx2()) return LSK_AVX2;
    return LSK_BASELINE;
#else
    return LSK_NEON;
#endif
}

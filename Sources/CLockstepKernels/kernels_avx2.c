#pragma STDC FP_CONTRACT OFF
#include "CLockstepKernels.h"

#if defined(__x86_64__)
#include <string.h>

#define LSK_WIDTH 32
#define LSK_SET LSK_AVX2
#define LSK_TABLE lsk_kernels_avx2
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "Body/body.h"
#pragma clang attribute pop
#endif

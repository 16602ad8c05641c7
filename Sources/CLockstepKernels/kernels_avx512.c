#pragma STDC FP_CONTRACT OFF
#include "CLockstepKernels.h"

#if defined(__x86_64__)
#include <string.h>

#define LSK_WIDTH 64
#define LSK_SET LSK_AVX512
#define LSK_TABLE lsk_kernels_avx512
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#include "Body/body.h"
#pragma clang attribute pop
#endif

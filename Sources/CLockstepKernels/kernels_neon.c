#pragma STDC FP_CONTRACT OFF
#include "CLockstepKernels.h"

#if defined(__aarch64__)
#include <string.h>

#define LSK_WIDTH 16
#define LSK_SET LSK_NEON
#define LSK_TABLE lsk_kernels_neon
#include "Body/body.h"
#endif

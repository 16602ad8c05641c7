// No instruction set asked for: what every processor of the architecture has.
#pragma STDC FP_CONTRACT OFF
#include "CLockstepKernels.h"

#include <string.h>

#define LSK_WIDTH 16
#define LSK_SET LSK_BASELINE
#define LSK_TABLE lsk_kernels_baseline
#include "Body/body.h"

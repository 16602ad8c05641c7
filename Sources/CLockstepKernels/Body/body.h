// The body of the leaf, included once for each instruction set by kernels_*.c, which defines
//   LSK_WIDTH   bytes in a vector register
//   LSK_SET     the LSK_* value of the instruction set
//   LSK_TABLE   the name of its table
// Each family of kernels has a file of its own here; all functions in it are static.
#include "simd.h"

const lsk_kernels LSK_TABLE = {
    .instruction_set = LSK_SET,
};

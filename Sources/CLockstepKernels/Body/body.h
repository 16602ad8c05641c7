// The body of the leaf, included once for each instruction set by kernels_*.c, which defines
//   LSK_WIDTH   bytes in a vector register
//   LSK_SET     the LSK_* value of the instruction set
//   LSK_TABLE   the name of its table
// Each family of kernels has a file of its own here; all functions in it are static.
#include "simd.h"
#include "philox.h"
#include "convert.h"
#include "softmax.h"
#include "gemm.h"
#include "layers.h"
#include "training.h"
#include "optimizer.h"

#include "math64.h"

#include "mismatch.h"
#include "exact.h"

#include "divergence.h"

#include "correction.h"

#include "objective.h"

const lsk_kernels LSK_TABLE = {
    .instruction_set = LSK_SET,
    .convert = convert,
    .lse_row = lse_row,
    .lse_reset = lse_reset,
    .lse_tile = lse_tile,
    .lse_finish = lse_finish,
    .prepare_row = prepare_row,
    .gradient_row = gradient_row,
    .softmax_row = softmax_row,
    .strip_rows = LSK_MR,
    .multiply = multiply,
    .multiply_row = multiply_row,
    .pack_strips = pack_strips,
    .pack_strips_transposed = pack_strips_transposed,
    .pack_panel = pack_panel,
    .widen_panel = widen_panel,
    .pack_panel_transposed = pack_panel_transposed,
    .add_bias = add_bias,
    .rms_norm = rms_norm,
    .add_rms_norm = add_rms_norm,
    .rotate = rotate,
    .softmax_tile = softmax_tile,
    .silu_multiply = silu_multiply,
    .add_times = add_times,
    .store_rows = store_rows,
    .non_finite_values = non_finite_values,
    .dot = dot,
    .rms_norm_backward = rms_norm_backward,
    .silu_multiply_backward = silu_multiply_backward,
    .softmax_backward = softmax_backward,
    .store_rounded = store_rounded,
    .column_sums = column_sums,
    .fixed_add = fixed_add,
    .mismatch_sums = mismatch_sums,
    .mismatch_evidence = mismatch_evidence,
    .mismatch_select = mismatch_select,
    .mismatch_terms = mismatch_terms,
    .correction_check = correction_check,
    .correct_sequence = correct_sequence,
    .correction_select = correction_select,
    .exact_add = exact_add,
    .divergence_row = divergence_row,
    .divergence_sums = divergence_sums,
    .objective_count = objective_count,
    .objective_level = objective_level,
    .objective_terms = objective_terms,
    .objective_kl = objective_kl,
    .adamw = adamw,
    .gradient_squares = gradient_squares,
};

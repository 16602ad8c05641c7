// The C leaf: kernels that need vector instructions Swift cannot ask for, and nothing else.
//
// One body (../Body/*.h) is compiled once for each instruction set, under a target attribute, and
// reached through a table of function pointers. Every kernel gives the same bits in all of them.
#ifndef CLOCKSTEP_KERNELS_H
#define CLOCKSTEP_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "lsk_correction.h"
#include "lsk_divergence.h"
#include "lsk_environment.h"
#include "lsk_evidence.h"
#include "lsk_mismatch.h"
#include "lsk_objective.h"

// The instruction sets, with the values of lockstep_instruction_set. Macros, so that the body can ask
// for its own in #if.
#define LSK_BASELINE 1
#define LSK_AVX2 2
#define LSK_AVX512 3
#define LSK_NEON 4

// Element formats, with the raw values of Swift's `Format`.
#define LSK_FP32 0
#define LSK_FP16 1
#define LSK_BF16 2
#define LSK_FP64 3
#define LSK_E4M3FN 4
#define LSK_E5M2 5

// Emulated formats, whose values are stored in floats: exponent bits << 8 | mantissa bits. Codes from LSK_EMULATED on.
#define LSK_EMULATED 256

// Rounding to a narrower format, with the values of lockstep_rounding.
#define LSK_NEAREST_EVEN 0
#define LSK_TOWARD_ZERO 1
#define LSK_STOCHASTIC 2

// The units of the log-softmax (docs/Numerics.md): they are part of the result's bits.
#define LSK_BLOCK 2048     // logits in a block: sums of blocks are added in float64, in order
#define LSK_TILE 128       // logits after which the reference may move
#define LSK_LANE_COUNT 64  // logit v belongs to lane v mod 64
#define LSK_WIDE 1048576.0f  // beyond +-2^20 the row's maximum is subtracted first

// The units of a matrix product. The chain is part of the bits, the panel is not.
#define LSK_CHAIN 128  // products in one chain of fused multiply-adds
#define LSK_PANEL 32   // columns of the right operand packed together

// How a logit becomes what the softmax sees: round, soft-cap, divide by the temperature.
typedef struct {
    float temperature;
    float inverse, inverse_low;  // 1 / temperature, as the sum of two floats
    float soft_cap;              // 0: none
    int32_t rounding;            // LSK_FP32 (none), LSK_FP16, LSK_BF16 or an emulated format
} lsk_logit_rule;

// Flags of a row.
#define LSK_LSE_NOT_FINITE 1  // a NaN or +inf was met
#define LSK_LSE_WIDE 2        // a logit beyond 2^20 was met
#define LSK_LSE_LOW 4         // a tile below -2^20 was left out

#define LSK_LSE_NONE INT32_MIN  // the reference before any logit above -inf

// A row's 64 lanes within a block: sums of e^y 2^-reference, and of that times (y - reference L): L is ln 2 rounded to float (Body/exp.h).
typedef struct {
    float sum[LSK_LANE_COUNT];
    float weighted[LSK_LANE_COUNT];
    int32_t reference, flags;
} lsk_lse_state;

// A finished block.
typedef struct {
    double sum, weighted;
    int32_t reference, flags;
} lsk_lse_block;

// What the gradient of one row needs: p = e^y 2^-reference inverse_sum.
typedef struct {
    float d_log_prob, d_entropy;
    float inverse_sum;
    float entropy_offset;  // entropy - ln(sum): what makes y - reference L into ln p + entropy
    float shift;           // subtracted from the logit first; 0 but for rows beyond 2^20
    int32_t reference;
} lsk_gradient_row;

// One step of AdamW: see Reference/ReferenceOptimizer.swift.
typedef struct {
    float gradient_scale;
    float first_rest;                // 1 - beta1
    float second, second_rest;       // beta2, 1 - beta2
    float inverse_root, epsilon;     // 1 / sqrt(1 - beta2^t)
    float decay, step_size;          // 1 - rate decay, rate / (1 - beta1^t)
} lsk_adamw_rule;

// What happened in a conversion; see lockstep_convert_counts.
typedef struct {
    int64_t overflow, underflow, nan;
} lsk_convert_counts;

// All kernels of one instruction set. Formats are LSK_FP32, LSK_FP16 or LSK_BF16 (any, in convert), in gemm.h and
// layers.h emulated ones too; strides in elements.
typedef struct {
    int32_t instruction_set;

    // convert.h. `count` contiguous elements; adds to `counts`. Element i of a stochastic rounding uses
    // the random number of `seed` and first_index + i.
    void (*convert)(void *destination, int32_t destination_format, const void *source,
                    int32_t source_format, ptrdiff_t count, int32_t rounding, uint64_t seed,
                    uint64_t first_index, lsk_convert_counts *counts);

    // softmax.h. Rows of logits in memory, or tiles that a matrix product left in float.
    void (*lse_row)(lsk_lse_block *blocks, const void *x, int32_t format, ptrdiff_t count,
                    const lsk_logit_rule *rule, int32_t entropy);
    void (*lse_reset)(lsk_lse_state *state);
    void (*lse_tile)(lsk_lse_state *states, const float *tile, ptrdiff_t tile_stride, ptrdiff_t rows,
                     ptrdiff_t count, const lsk_logit_rule *rule, int32_t entropy);
    void (*lse_finish)(lsk_lse_block *block, const lsk_lse_state *state);
    void (*prepare_row)(float *out, const void *x, int32_t format, ptrdiff_t count,
                        const lsk_logit_rule *rule, float shift);
    void (*gradient_row)(void *out, int32_t out_format, const void *x, int32_t format, ptrdiff_t count,
                         ptrdiff_t target, const lsk_logit_rule *rule, const lsk_gradient_row *row);
    int32_t (*softmax_row)(void *out, int32_t out_format, const float *x, ptrdiff_t count);

    // gemm.h. The left operand in strips of `strip_rows` rows, the right one in panels of 32 columns.
    ptrdiff_t strip_rows;
    void (*multiply)(float *c, ptrdiff_t c_stride, const float *strips, ptrdiff_t depth, ptrdiff_t first,
                     const void *panel, int32_t format, ptrdiff_t m, ptrdiff_t k, int32_t add);
    // The product of one row with four panels, each k x 32.
    void (*multiply_row)(float *c, const float *a, const void *panels, ptrdiff_t panel_bytes, int32_t format,
                         ptrdiff_t k);
    void (*pack_strips)(float *strips, const void *x, int32_t format, ptrdiff_t row_stride, ptrdiff_t m,
                        ptrdiff_t k);
    void (*pack_strips_transposed)(float *strips, const float *x, ptrdiff_t row_stride, ptrdiff_t m,
                                   ptrdiff_t k);
    void (*pack_panel)(float *panel, const void *x, int32_t format, ptrdiff_t row_stride, ptrdiff_t n,
                       ptrdiff_t k);
    // The panel of `k` rows of 32 codes of e4m3fn, each column times its scale: exact for powers of two.
    void (*widen_panel)(float *panel, const uint8_t *codes, const float *scales, ptrdiff_t k);
    void (*pack_panel_transposed)(float *panel, const void *x, int32_t format, ptrdiff_t row_stride,
                                  ptrdiff_t n, ptrdiff_t k);
    void (*add_bias)(float *c, ptrdiff_t c_stride, const float *bias, ptrdiff_t m, ptrdiff_t n);

    // layers.h. One row of `count` values each; all of one format. `each`: rounded after every elementary operation.
    void (*rms_norm)(void *out, const void *x, const float *weight, int32_t format, ptrdiff_t count,
                     double epsilon, int32_t each);
    void (*add_rms_norm)(void *out, void *x, const void *y, const float *weight, int32_t format, ptrdiff_t count,
                         double epsilon);
    void (*rotate)(void *x, const float *cosines, const float *sines, int32_t format, ptrdiff_t count,
                   int32_t each);
    float (*softmax_tile)(float *x, ptrdiff_t count, float *maximum, float *sum);
    void (*silu_multiply)(void *out, int32_t out_format, const void *gate, const void *up, int32_t format,
                          ptrdiff_t count, int32_t each);
    void (*add_times)(void *out, const void *a, const void *b, float scale, int32_t format,
                       ptrdiff_t count);
    int64_t (*store_rows)(void *out, ptrdiff_t out_stride, int32_t format, const float *x,
                          ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count);
    int64_t (*non_finite_values)(const void *x, int32_t format, ptrdiff_t count);

    // training.h. One row of `count` floats each.
    double (*dot)(const float *a, const float *b, ptrdiff_t count);
    void (*rms_norm_backward)(float *dx, float *d_weight, const float *x, const float *dy, const float *weight,
                              ptrdiff_t count, double epsilon);
    void (*silu_multiply_backward)(float *d_gate, float *d_up, const float *gate, const float *up, const float *d,
                                   ptrdiff_t count);
    void (*softmax_backward)(float *ds, const float *p, const float *dp, ptrdiff_t count);
    int64_t (*store_rounded)(float *out, ptrdiff_t out_stride, int32_t format, const float *x,
                             ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count);
    void (*column_sums)(float *out, const float *x, ptrdiff_t x_stride, ptrdiff_t rows, ptrdiff_t count);
    int64_t (*fixed_add)(int64_t *high, int64_t *low, const float *x, float scale, ptrdiff_t count);

    // mismatch.h. `histogram` and `profile` may be NULL.
    void (*mismatch_sums)(lsk_mismatch_sums *sums, uint64_t *histogram, lsk_mismatch_profile *profile,
                          const lsk_mismatch_span *span);
    void (*mismatch_evidence)(lsk_mismatch_sums *sums, uint64_t *histogram, lsk_mismatch_profile *profile,
                              lsk_evidence *evidence, uint64_t *counts, int32_t ends,
                              const lsk_mismatch_span *span);
    int64_t (*mismatch_select)(double *values, const lsk_bin_range *ranges, int64_t range_count,
                               const lsk_mismatch_span *span);
    int64_t (*mismatch_terms)(double *log_ratio, double *k3, double *probability, uint8_t *counted,
                              const lsk_mismatch_span *span);

    // correction.h. `weights` and `kept` may be NULL.
    int64_t (*correction_check)(const lsk_correction_span *span);
    void (*correct_sequence)(lsk_correction_sums *sums, void *weights, int32_t weights_format, uint8_t *kept,
                             const lsk_correction_span *span, const lsk_correction_rule *rule);
    int64_t (*correction_select)(double *values, int64_t *count, double *sum, double bound,
                                 const lsk_correction_span *span);

    // exact.h. `b` may be NULL.
    int (*exact_add)(double *sums, int64_t stride, const double *a, const double *b, int64_t count,
                     uint64_t *refused);

    // divergence.h.
    void (*divergence_row)(lsk_divergence_row *row, double *y, const void *logits, int32_t format,
                           int64_t count, const lsk_divergence_rule *rule);
    void (*divergence_sums)(lsk_divergence_sums *sums, const double *p, double p_total, const double *q,
                            double q_total, double log_ratio_of_totals, int64_t count);

    // objective.h. `gradient`, `d_entropies` and `gradients` may be NULL; fp32 or fp64.
    void (*objective_count)(lsk_objective_counts *counts, const lsk_objective_span *span,
                            const lsk_objective_rule *rule);
    void (*objective_level)(lsk_objective_level *level, lsk_objective_counts *counts,
                            const lsk_objective_span *span, const lsk_objective_rule *rule);
    void (*objective_terms)(lsk_objective_sums *sums, void *gradient, int32_t format, void *d_entropies,
                            int32_t d_entropies_format, const lsk_objective_span *span,
                            const lsk_objective_rule *rule, const lsk_objective_level *level,
                            double factor);
    void (*objective_kl)(void *values, int32_t format, void *gradients, int32_t gradients_format,
                         const lsk_objective_span *span, const lsk_objective_rule *rule);

    // optimizer.h.
    void (*adamw)(float *masters, float *first, float *second, const float *gradients, ptrdiff_t count,
                  const lsk_adamw_rule *rule);
    double (*gradient_squares)(float *largest, const float *gradients, ptrdiff_t count);
} lsk_kernels;

// The kernels for an instruction set; NULL if this machine, or this build, does not have it.
const lsk_kernels *lsk_kernels_for(int32_t instruction_set);

// The best instruction set of this machine.
int32_t lsk_best_instruction_set(void);

#endif

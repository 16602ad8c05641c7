/* lockstep.h: keep the policy you train and the policy you sample from the same policy.
 *
 * In RL fine-tuning one engine samples (the rollout policy mu) and another trains (the trainer
 * policy pi). Same weights, different rounding: mu != pi. This library computes log-probs whose
 * bits depend on their inputs alone, and measures how far two engines are apart.
 *
 *     #include <stdio.h>
 *     #include <lockstep.h>
 *
 *     int main(void) {
 *         float logits[2 * 4] = {1, 2, 3, 4,  0, 0, 8, 0};
 *         int32_t targets[2] = {3, 2};
 *         float log_probs[2];
 *         int64_t matrix[2] = {2, 4}, vector[1] = {2};
 *         lockstep_tensor x = lockstep_tensor_of(logits, LOCKSTEP_FLOAT32, 2, matrix);
 *         lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, vector);
 *         lockstep_tensor out = lockstep_tensor_of(log_probs, LOCKSTEP_FLOAT32, 1, vector);
 *         if (lockstep_log_probs(&out, NULL, NULL, NULL, &x, &y, NULL) != LOCKSTEP_OK) {
 *             fprintf(stderr, "%s\n", lockstep_last_error());
 *             return 1;
 *         }
 *         printf("%.6f %.6f\n", log_probs[0], log_probs[1]);
 *         return 0;
 *     }
 *
 * The promises, which hold for every function below:
 *
 * - A result is a pure function of the inputs and options. It does not depend on the batch a row
 *   came in, on `threads`, on `instruction_set`, or on the floating-point mode of the caller
 *   (flush-to-zero and the rounding direction are set for the call, then restored).
 * - Bad input is an error, never a crash: the status says what kind, lockstep_last_error() says
 *   which argument, at which index, and what to do. On error the outputs are untouched.
 * - `const` means it may be used from many threads at once. Nothing here is global but a pool of
 *   worker threads, which survives fork().
 * - Outputs come first, then handles, then inputs, options last. An output marked "optional" may
 *   be NULL. NULL options mean the defaults.
 * - Counts of zero are not errors: nothing is written, and the call succeeds.
 *
 * Letters in shapes: tokens (rows), vocab (columns of the logits), H (hidden size).
 * Logarithms are natural; entropies and divergences are in nats.
 *
 * Sections: 1 version, status, errors.  2 tensors and number formats.  3 log-probs.  4 mismatch.
 */
#ifndef LOCKSTEP_H
#define LOCKSTEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------------------------------------
 * 1. Version, status, errors
 * ------------------------------------------------------------------------------------------ */

#define LOCKSTEP_VERSION_MAJOR 0
#define LOCKSTEP_VERSION_MINOR 1
#define LOCKSTEP_VERSION_PATCH 0

/* Version of the library that is loaded: major * 10000 + minor * 100 + patch. */
int32_t lockstep_version(void);

/* The same as text, "0.1.0". A static string; never NULL. */
const char *lockstep_version_string(void);

/* What every fallible function returns. */
typedef int32_t lockstep_status;
enum {
    LOCKSTEP_OK = 0,
    /* An argument is wrong: NULL, a bad shape, dtype, enum, size, or a value out of range. */
    LOCKSTEP_ERROR_INVALID_ARGUMENT = 1,
    /* The arguments are well formed, but this combination is not offered. */
    LOCKSTEP_ERROR_UNSUPPORTED = 2,
    /* A value that counts is NaN or infinite where the result would be undefined. */
    LOCKSTEP_ERROR_NON_FINITE = 3,
    LOCKSTEP_ERROR_OUT_OF_MEMORY = 4,
    /* A defect of this library: please report the message. */
    LOCKSTEP_ERROR_INTERNAL = 5
};

/* "LOCKSTEP_OK", "LOCKSTEP_ERROR_...", or "unknown status". A static string; never NULL. */
const char *lockstep_status_name(lockstep_status status);

/* The message of the last failed call on this thread: argument, index, what to do. Empty if none
 * failed. Valid until the next call of this library on this thread. Never NULL. */
const char *lockstep_last_error(void);

/* The instruction sets a kernel is built for. Results are the same bits on all of them; the choice
 * exists for tests and benchmarks. */
typedef int32_t lockstep_instruction_set;
enum {
    LOCKSTEP_INSTRUCTION_SET_BEST = 0, /* the best this machine has */
    LOCKSTEP_INSTRUCTION_SET_BASELINE = 1,
    LOCKSTEP_INSTRUCTION_SET_AVX2 = 2,
    LOCKSTEP_INSTRUCTION_SET_AVX512 = 3,
    LOCKSTEP_INSTRUCTION_SET_NEON = 4
};

/* 1 if this machine can run `set`, else 0 (also for an unknown value). */
int32_t lockstep_has_instruction_set(lockstep_instruction_set set);

/* ---------------------------------------------------------------------------------------------
 * 2. Tensors and number formats
 * ------------------------------------------------------------------------------------------ */

/* One value of a 16-bit or 8-bit format. One-member structs, so that they cannot be mixed up. */
typedef struct { uint16_t bits; } lockstep_fp16;       /* 1 sign, 5 exponent, 10 mantissa bits */
typedef struct { uint16_t bits; } lockstep_bf16;       /* 1, 8, 7 */
typedef struct { uint8_t bits; } lockstep_fp8_e4m3fn;  /* 1, 4, 3; no infinity, maximum 448 */
typedef struct { uint8_t bits; } lockstep_fp8_e5m2;    /* 1, 5, 2; IEEE-like, maximum 57,344 */

/* The type of one element. Layout and codes are DLPack's DLDataType; `lanes` is 1. */
typedef struct {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes;
} lockstep_dtype;

/* The dtypes this library knows, as the integer code | bits << 8 | lanes << 16 (the bytes of a
 * lockstep_dtype on a little-endian machine). Turn one into a dtype with lockstep_dtype_of(). */
enum {
    LOCKSTEP_FLOAT32 = 2 | 32 << 8 | 1 << 16,
    LOCKSTEP_FLOAT64 = 2 | 64 << 8 | 1 << 16,
    LOCKSTEP_FLOAT16 = 2 | 16 << 8 | 1 << 16,
    LOCKSTEP_BFLOAT16 = 4 | 16 << 8 | 1 << 16,
    LOCKSTEP_FLOAT8_E4M3FN = 10 | 8 << 8 | 1 << 16,
    LOCKSTEP_FLOAT8_E5M2 = 12 | 8 << 8 | 1 << 16,
    LOCKSTEP_INT32 = 0 | 32 << 8 | 1 << 16,
    LOCKSTEP_INT64 = 0 | 64 << 8 | 1 << 16,
    LOCKSTEP_UINT8 = 1 | 8 << 8 | 1 << 16,
    LOCKSTEP_UINT64 = 1 | 64 << 8 | 1 << 16,
    LOCKSTEP_BOOL = 6 | 8 << 8 | 1 << 16
};

/* Where the data lives. Layout is DLPack's DLDevice. Only the CPU (type 1) is accepted. */
typedef struct {
    int32_t device_type;
    int32_t device_id;
} lockstep_device;

/* A borrowed buffer. Layout is DLPack's DLTensor, so a tensor of PyTorch, JAX or NumPy is passed
 * without a copy. `strides` are in elements; NULL means C order. `data` must be aligned to its
 * element. The library never keeps the pointer after the call, except where it says so. */
typedef struct {
    void *data;
    lockstep_device device;
    int32_t ndim;
    lockstep_dtype dtype;
    const int64_t *shape;
    const int64_t *strides;
    uint64_t byte_offset;
} lockstep_tensor;

/* The dtype for one of the LOCKSTEP_FLOAT32... codes above. */
static inline lockstep_dtype lockstep_dtype_of(int32_t code) {
    lockstep_dtype dtype;
    dtype.code = (uint8_t)(code & 0xff);
    dtype.bits = (uint8_t)((code >> 8) & 0xff);
    dtype.lanes = (uint16_t)((code >> 16) & 0xffff);
    return dtype;
}

/* A C-ordered tensor on the CPU over memory of the caller. `shape` is borrowed, not copied. */
static inline lockstep_tensor lockstep_tensor_of(void *data, int32_t dtype, int32_t ndim,
                                                 const int64_t *shape) {
    lockstep_tensor tensor;
    tensor.data = data;
    tensor.device.device_type = 1;
    tensor.device.device_id = 0;
    tensor.ndim = ndim;
    tensor.dtype = lockstep_dtype_of(dtype);
    tensor.shape = shape;
    tensor.strides = NULL;
    tensor.byte_offset = 0;
    return tensor;
}

/* How a value between two neighbours of the destination format is rounded. */
typedef int32_t lockstep_rounding;
enum {
    LOCKSTEP_ROUND_NEAREST_EVEN = 0,
    LOCKSTEP_ROUND_TOWARD_ZERO = 1,
    /* Up with a probability equal to the distance from below, so that the expectation is the
     * value. The random number of element i is a function of `seed` and i alone (Philox4x32-10),
     * so the result does not depend on threads or on how an array is cut by `first_index`. */
    LOCKSTEP_ROUND_STOCHASTIC = 2
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_rounding rounding;
    uint64_t seed;        /* stochastic rounding: the seed */
    uint64_t first_index; /* stochastic rounding: the index of the first element */
    int32_t threads;      /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_convert_options;

#define LOCKSTEP_CONVERT_OPTIONS_INIT { sizeof(lockstep_convert_options), 0, 0, 0, 0, 0 }

/* What happened in a conversion. Frozen. */
typedef struct {
    int64_t overflow;  /* finite values too large for the destination: infinity, or NaN in e4m3fn
                        * (toward zero: the largest finite value) */
    int64_t underflow; /* non-zero values that became zero */
    int64_t nan;       /* NaN in the source */
} lockstep_convert_counts;

/* Converts every element of `source` to the format of `destination`.
 *
 * Shapes: equal, any number of dimensions up to 8; both in C order or with strides.
 * Formats: fp16, bf16, fp32, fp64, fp8 e4m3fn, fp8 e5m2, each way. Widening is exact; narrowing
 * rounds once, as `rounding` says, directly from the source format. Subnormals are kept. A NaN
 * stays a NaN with its sign; an infinity stays one (in e4m3fn, which has none, it becomes NaN).
 * Overflow to nearest: infinity (e4m3fn: NaN), as ml_dtypes and IEEE 754 do; toward zero: the
 * largest finite value. Stochastic rounding overflows as toward zero does beyond the largest
 * finite value, and otherwise only between two neighbours.
 * `counts` is optional. `destination` may be `source` only when the formats have one size. */
lockstep_status lockstep_convert(const lockstep_tensor *destination,
                                 lockstep_convert_counts *counts,
                                 const lockstep_tensor *source,
                                 const lockstep_convert_options *options);

/* Distance in units in the last place: how many representable steps lie between a and b.
 *
 * Shapes: `distance` uint64, `a` and `b` of one format, all of equal shape. +0 and -0 are the same
 * value (0). Two NaN are 0 apart; a NaN and a number UINT64_MAX. Infinity is one step beyond the
 * largest finite value. */
lockstep_status lockstep_ulp_distance(const lockstep_tensor *distance, const lockstep_tensor *a,
                                      const lockstep_tensor *b);

/* One value at a time: to float exactly, from float to nearest even. */
float lockstep_fp16_to_float(lockstep_fp16 value);
float lockstep_bf16_to_float(lockstep_bf16 value);
float lockstep_fp8_e4m3fn_to_float(lockstep_fp8_e4m3fn value);
float lockstep_fp8_e5m2_to_float(lockstep_fp8_e5m2 value);
lockstep_fp16 lockstep_fp16_from_float(float value);
lockstep_bf16 lockstep_bf16_from_float(float value);
lockstep_fp8_e4m3fn lockstep_fp8_e4m3fn_from_float(float value);
lockstep_fp8_e5m2 lockstep_fp8_e5m2_from_float(float value);

/* ---------------------------------------------------------------------------------------------
 * 3. Log-probs
 *
 * For a row of logits x, y_v = soft_cap(x_v) / temperature, and
 *
 *     log_prob     = y_target - log_sum_exp
 *     log_sum_exp  = ln sum_v exp(y_v)
 *     entropy      = log_sum_exp - sum_v softmax(y)_v y_v
 *
 * Logits, hidden states and heads are fp32, fp16 or bf16. They are widened to fp32 exactly.
 * Order of arithmetic (what fixes the bits): docs/Numerics.md. Log-probs are never above 0.
 * A logit of -inf contributes exactly nothing; a target at -inf has log-prob -inf.
 * A counted row with a NaN, with +inf, or with only -inf is LOCKSTEP_ERROR_NON_FINITE, and the
 * message names the row. Rows whose target is `ignore_index` are never read: outputs are 0.
 * ------------------------------------------------------------------------------------------ */

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    int32_t ignore_index; /* rows with this target are skipped; -100 by default */
    double temperature;   /* in [1e-6, 1e6]; 1 by default. 0 is an error: a limit, not a policy */
    double soft_cap;      /* 0: none. Else y = soft_cap * tanh(x / soft_cap), before the temperature */
    /* Keep only the top_k largest logits (0: all), then only the smallest set of the largest whose
     * probability reaches top_p (1: all), both after the temperature, as samplers do. Logits equal
     * to the smallest kept one are kept too, so the kept set does not depend on any order. */
    double top_p;
    int32_t top_k;
    /* Round each logit to this dtype before the log-softmax: LOCKSTEP_FLOAT16 or LOCKSTEP_BFLOAT16
     * for a 16-bit head, 0 or LOCKSTEP_FLOAT32 for none. A logit beyond fp16 becomes infinite. */
    int32_t logits_dtype;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_log_probs_options;

#define LOCKSTEP_LOG_PROBS_OPTIONS_INIT \
    { sizeof(lockstep_log_probs_options), -100, 1.0, 0.0, 1.0, 0, 0, 0, 0 }

/* Log-prob of each row's target, from logits.
 *
 * log_probs    [tokens]          fp32 or fp64; optional
 * entropy      [tokens]          fp32 or fp64; optional
 * log_sum_exp  [tokens]          fp32 or fp64; optional. As fp64 it can be given to the backward.
 * kept_mass    [tokens]          fp32 or fp64; optional. The probability of the kept set before it
 *                                was cut: 1 without top_k and top_p
 * logits       [tokens x vocab]  fp32, fp16 or bf16; the last dimension contiguous, any row stride
 * targets      [tokens]          int32 or int64, in [0, vocab) or ignore_index
 *
 * With top_k or top_p, log_probs, entropy and log_sum_exp are those of the kept set renormalised
 * (what a serving engine calls "processed"); a target outside it has log-prob -inf.
 * Reads each logit once (twice with top_k or top_p); extra memory: at most 1 MB + 64 bytes a token. */
lockstep_status lockstep_log_probs(const lockstep_tensor *log_probs,
                                   const lockstep_tensor *entropy,
                                   const lockstep_tensor *log_sum_exp,
                                   const lockstep_tensor *kept_mass,
                                   const lockstep_tensor *logits, const lockstep_tensor *targets,
                                   const lockstep_log_probs_options *options);

/* Gradient of sum_t d_log_probs[t] log_prob[t] + d_entropy[t] entropy[t] with respect to the logits.
 *
 * d_logits     [tokens x vocab]  fp32, fp16 or bf16; written, not accumulated. May be the logits
 *                                themselves (same data and dtype): then they are overwritten.
 * d_log_probs  [tokens]          fp32 or fp64; optional (NULL: zero)
 * d_entropy    [tokens]          fp32 or fp64; optional (NULL: zero)
 * log_sum_exp  [tokens]          fp64, from the forward call with the same options; optional: NULL
 *                                computes it again (one more pass). The bits are the same.
 * others                         as in lockstep_log_probs
 *
 * With p = softmax(y):  dL/dy_v = d_log_prob (1[v = target] - p_v) - d_entropy p_v (ln p_v + entropy),
 * then through temperature and soft-cap. Rows at ignore_index get zeros. Rounding to logits_dtype
 * passes gradients straight through. top_k and top_p: LOCKSTEP_ERROR_UNSUPPORTED. */
lockstep_status lockstep_log_probs_backward(const lockstep_tensor *d_logits,
                                            const lockstep_tensor *d_log_probs,
                                            const lockstep_tensor *d_entropy,
                                            const lockstep_tensor *log_sum_exp,
                                            const lockstep_tensor *logits,
                                            const lockstep_tensor *targets,
                                            const lockstep_log_probs_options *options);

/* Log-prob of each row's target, from hidden states and a head: logits = hidden weight^T + bias.
 * The tokens x vocab logits never exist in memory. The result equals, bit for bit,
 * lockstep_log_probs of the logits formed by the same product rule (docs/Numerics.md).
 *
 * log_probs, entropy, log_sum_exp, targets: as in lockstep_log_probs
 * hidden  [tokens x H]  fp32, fp16 or bf16; the last dimension contiguous
 * weight  [vocab x H]   fp32, fp16 or bf16 (need not be hidden's); the last dimension contiguous
 * bias    [vocab]       fp32, fp16 or bf16; optional
 *
 * top_k and top_p: LOCKSTEP_ERROR_UNSUPPORTED. Extra memory: at most 8 MB + 64 bytes a token. */
lockstep_status lockstep_linear_log_probs(const lockstep_tensor *log_probs,
                                          const lockstep_tensor *entropy,
                                          const lockstep_tensor *log_sum_exp,
                                          const lockstep_tensor *hidden,
                                          const lockstep_tensor *weight,
                                          const lockstep_tensor *bias,
                                          const lockstep_tensor *targets,
                                          const lockstep_log_probs_options *options);

/* Gradients of sum_t d_log_probs[t] log_prob[t] + d_entropy[t] entropy[t] with respect to hidden
 * states, head and bias. All three are ADDED to what the buffers hold: clear them first.
 *
 * d_hidden  [tokens x H]  fp32, fp16 or bf16; optional
 * d_weight  [vocab x H]   fp32; optional
 * d_bias    [vocab]       fp32; optional
 * others                  as in lockstep_log_probs_backward and lockstep_linear_log_probs
 *
 * The logits are formed again, never stored. Micro-batches of a multiple of 128 tokens, given in
 * order, leave the same bits in d_weight and d_bias as one batch. */
lockstep_status lockstep_linear_log_probs_backward(const lockstep_tensor *d_hidden,
                                                   const lockstep_tensor *d_weight,
                                                   const lockstep_tensor *d_bias,
                                                   const lockstep_tensor *d_log_probs,
                                                   const lockstep_tensor *d_entropy,
                                                   const lockstep_tensor *log_sum_exp,
                                                   const lockstep_tensor *hidden,
                                                   const lockstep_tensor *weight,
                                                   const lockstep_tensor *bias,
                                                   const lockstep_tensor *targets,
                                                   const lockstep_log_probs_options *options);

/* A head copied once into the layout the kernels read, for repeated use (decoding, many batches). */
typedef struct lockstep_head lockstep_head;

/* Copies `weight` [vocab x H] and `bias` [vocab] (optional) into a new head, in weight's format.
 * Takes as much memory as the weight; keeps no pointer to it. Destroy with lockstep_head_destroy. */
lockstep_status lockstep_head_create(lockstep_head **head, const lockstep_tensor *weight,
                                     const lockstep_tensor *bias);

/* Frees a head. NULL is a no-op. No call may be using it. */
void lockstep_head_destroy(lockstep_head *head);

/* lockstep_linear_log_probs with a prepared head: the same bits, faster for few tokens. */
lockstep_status lockstep_head_log_probs(const lockstep_tensor *log_probs,
                                        const lockstep_tensor *entropy,
                                        const lockstep_tensor *log_sum_exp,
                                        const lockstep_head *head, const lockstep_tensor *hidden,
                                        const lockstep_tensor *targets,
                                        const lockstep_log_probs_options *options);

/* ---------------------------------------------------------------------------------------------
 * 4. Mismatch
 *
 * How far the trainer policy pi is from the rollout policy mu on tokens that mu drew. Per token,
 *
 *     d = ln pi - ln mu   (log ratio)        r = exp(d) = pi / mu   (ratio)
 *
 * Log-probs are fp32, fp64, fp16 or bf16, in one of two layouts, the same for all inputs:
 *   packed  [tokens], with offsets [sequences + 1] int64: sequence i is [offsets[i], offsets[i+1])
 *           (offsets NULL: one sequence)
 *   padded  [sequences x length], offsets NULL
 * A mask (uint8 or bool, shape of the log-probs, optional) says which tokens count. A masked token
 * is never read: a NaN there changes nothing. A sequence without counted tokens enters nothing and
 * is reported in `empty_sequences`. A NaN or infinite log-prob at a counted token is
 * LOCKSTEP_ERROR_NON_FINITE naming sequence and position, or is dropped and counted (`exclude`).
 * Formulas and their sources: docs/Glossary.md.
 * ------------------------------------------------------------------------------------------ */

/* What to do with a non-finite log-prob at a token that counts. */
typedef int32_t lockstep_non_finite;
enum {
    LOCKSTEP_NON_FINITE_STRICT = 0,  /* an error naming sequence and position */
    LOCKSTEP_NON_FINITE_EXCLUDE = 1  /* the token leaves value and denominator, and is counted */
};

/* Growable: appended fields read as zero when struct_size is smaller. */
typedef struct {
    uint32_t struct_size;
    lockstep_non_finite non_finite;
    int32_t threads; /* 0: one for each processor this process may use */
    lockstep_instruction_set instruction_set;
} lockstep_mismatch_options;

#define LOCKSTEP_MISMATCH_OPTIONS_INIT { sizeof(lockstep_mismatch_options), 0, 0, 0 }

/* A mean and its standard error, clustered by sequence (tokens of one sequence are not independent
 * draws). The error is NaN with fewer than two sequences. Frozen. */
typedef struct {
    double value;
    double standard_error;
} lockstep_estimate;

/* The statistics of one log. Values are NaN where no token counts. Growable: set struct_size before
 * the call; only that many bytes are written. */
typedef struct {
    uint32_t struct_size;
    uint32_t reserved; /* 0 */

    int64_t tokens;          /* tokens that count */
    int64_t masked_tokens;   /* tokens the mask leaves out */
    int64_t excluded_tokens; /* tokens dropped as non-finite (`exclude`) */
    int64_t sequences;       /* sequences with a token that counts */
    int64_t empty_sequences; /* sequences without */

    /* Over tokens. */
    lockstep_estimate mean_log_ratio;     /* mean d */
    lockstep_estimate k1;                 /* KL(mu || pi): mean(-d), unbiased, may be negative */
    lockstep_estimate k2;                 /* KL(mu || pi): mean(d^2 / 2) */
    lockstep_estimate k3;                 /* KL(mu || pi): mean(exp(d) - 1 - d), >= 0 */
    lockstep_estimate mean_abs_log_ratio; /* mean |d| */
    lockstep_estimate rms_log_ratio;      /* sqrt(mean d^2) */
    double max_abs_log_ratio;             /* max |d| ... */
    int64_t max_abs_sequence;             /* ... its sequence (the first of equals) ... */
    int64_t max_abs_position;             /* ... and its index in that sequence */
    lockstep_estimate mean_abs_prob_diff; /* mean |exp(ln pi) - exp(ln mu)| */
    double max_abs_prob_diff;
    double pearson;           /* correlation of the two probabilities */
    double one_minus_pearson; /* the same, without cancellation */
    lockstep_estimate share_differing;    /* tokens whose two log-probs differ in bits */
    lockstep_estimate share_outside_mlperf; /* tokens with r outside [0.999, 1.002] */
    lockstep_estimate share_outside_1pct;   /* ... outside [0.99, 1.01] */
    lockstep_estimate share_outside_5pct;
    lockstep_estimate share_outside_10pct;
    lockstep_estimate chi_square;         /* mean(r^2) - 1; a sample value, may be negative */
    lockstep_estimate mean_ratio;         /* mean r: 1 in expectation */
    double ess;                           /* (sum r)^2 / (n sum r^2), in (0, 1] */
    lockstep_estimate mean_exp_abs_log_ratio; /* mean exp|d|: "multiplicative probability error" */
    double trainer_perplexity;            /* exp(-mean ln pi) over tokens */
    double rollout_perplexity;
    double perplexity_ratio;              /* trainer / rollout */
    lockstep_estimate mean_rollout_log_prob; /* mean ln mu: minus the rollout's sample entropy */
    /* Quantiles of d at 0.1, 1, 5, 25, 50, 75, 95, 99, 99.9 %: linear between order statistics. */
    double log_ratio_quantiles[9];

    /* Over sequences: S = sum of d over a sequence's counted tokens. */
    lockstep_estimate sequence_log_ratio; /* mean S; minus the KL per sequence of the paper's figure */
    double sequence_log_ratio_std;        /* sample standard deviation of S (n - 1) */
    lockstep_estimate sequence_mean_log_ratio; /* mean over sequences of mean d */
    lockstep_estimate sequence_mean_exp_abs;   /* mean over sequences of mean exp|d| */
    double sequence_ess;                  /* ESS of the weights exp(S) */
    lockstep_estimate share_sequences_masked; /* sequences with mean exp|d| > 2 (MLPerf's mask) */
    lockstep_estimate slope_per_1000;     /* least-squares slope of S on length, per 1,000 tokens */
    double mean_sequence_length;          /* counted tokens a sequence */
    int64_t max_sequence_length;
} lockstep_mismatch;

/* Measures the mismatch of two log-prob arrays: all statistics above in one call. */
lockstep_status lockstep_mismatch_measure(lockstep_mismatch *mismatch,
                                          const lockstep_tensor *trainer_log_probs,
                                          const lockstep_tensor *rollout_log_probs,
                                          const lockstep_tensor *mask,
                                          const lockstep_tensor *offsets,
                                          const lockstep_mismatch_options *options);

/* One sequence of a log. Frozen. Everything is 0 for a sequence without counted tokens. */
typedef struct {
    int64_t tokens;            /* counted tokens */
    double log_ratio;          /* S = sum d */
    double mean_log_ratio;     /* S / tokens */
    double mean_abs_log_ratio; /* mean |d| */
    double max_abs_log_ratio;  /* max |d| */
    double mean_exp_abs;       /* mean exp|d| */
    double k3;                 /* mean(exp(d) - 1 - d) */
} lockstep_mismatch_sequence;

/* The per-sequence values behind the statistics. `count` must be the number of sequences. */
lockstep_status lockstep_mismatch_sequences(lockstep_mismatch_sequence *sequences, size_t count,
                                            const lockstep_tensor *trainer_log_probs,
                                            const lockstep_tensor *rollout_log_probs,
                                            const lockstep_tensor *mask,
                                            const lockstep_tensor *offsets,
                                            const lockstep_mismatch_options *options);

/* What a profile is taken over. */
typedef int32_t lockstep_mismatch_axis;
enum {
    LOCKSTEP_AXIS_POSITION = 0,    /* how many counted tokens of its sequence came before */
    LOCKSTEP_AXIS_PROBABILITY = 1, /* the rollout probability exp(ln mu) */
    LOCKSTEP_AXIS_LOG_RATIO = 2    /* d itself: a histogram */
};

/* One bucket of a profile: tokens whose axis value is in [lower, upper). Frozen. Means are NaN in an
 * empty bucket. */
typedef struct {
    double lower, upper;
    int64_t tokens;
    double mean_log_ratio;
    double mean_abs_log_ratio;
    double k3;
} lockstep_mismatch_bucket;

/* Statistics by bucket of position, of probability, or of the log ratio.
 *
 * buckets  [bucket_count]
 * edges    [bucket_count + 1] doubles, strictly increasing; -INFINITY and INFINITY are allowed at the
 *          ends. The last bucket includes its upper edge. Tokens outside all buckets are left out. */
lockstep_status lockstep_mismatch_profile(lockstep_mismatch_bucket *buckets, size_t bucket_count,
                                          const double *edges, lockstep_mismatch_axis axis,
                                          const lockstep_tensor *trainer_log_probs,
                                          const lockstep_tensor *rollout_log_probs,
                                          const lockstep_tensor *mask,
                                          const lockstep_tensor *offsets,
                                          const lockstep_mismatch_options *options);

/* The exact divergences of two rows of logits, over the whole vocabulary. Frozen. */
typedef struct {
    double kl_rollout_trainer; /* KL(mu || pi), >= 0 */
    double kl_trainer_rollout; /* KL(pi || mu), >= 0 */
    double total_variation;    /* sum |pi - mu| / 2, in [0, 1] */
    double jensen_shannon;     /* in [0, ln 2] */
    double same_top1;          /* 1 if both rows have their first maximum at one id, else 0 */
} lockstep_divergence;

/* Exact divergences of two logits matrices.
 *
 * mean   one value, optional: the means over counted rows (NaN if none). A KL may be +inf, where one
 *        policy gives 0 to what the other can draw.
 * rows   [row_count], optional: each row's values (0 for a masked row). row_count is then tokens.
 * trainer_logits, rollout_logits  [tokens x vocab]  fp32, fp16 or bf16, any row stride
 * mask   [tokens] uint8 or bool, optional
 * options  temperature, soft_cap, logits_dtype, threads and instruction_set are used; the others
 *          must have their defaults. The same options apply to both sides. */
lockstep_status lockstep_mismatch_exact(lockstep_divergence *mean, lockstep_divergence *rows,
                                        size_t row_count, const lockstep_tensor *trainer_logits,
                                        const lockstep_tensor *rollout_logits,
                                        const lockstep_tensor *mask,
                                        const lockstep_log_probs_options *options);

#ifdef __cplusplus
}
#endif

#endif /* LOCKSTEP_H */

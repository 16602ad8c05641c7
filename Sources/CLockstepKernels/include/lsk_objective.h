// What the objective kernels read and write.
#ifndef LSK_OBJECTIVE_H
#define LSK_OBJECTIVE_H

#include <stdint.h>

// Terms, with the values of lockstep_objective_term.
#define LSK_CLIP 0
#define LSK_REINFORCE 1
#define LSK_IMPORTANCE 2
#define LSK_CISPO 3
#define LSK_SAPO 4
#define LSK_TOPR 5
#define LSK_SQUARED 6
#define LSK_KL_COV 7
#define LSK_GMPO 8
#define LSK_VESPO 9

// What the ratio is of, with the values of lockstep_ratio_level.
#define LSK_RATIO_TOKEN 0           // exp(delta)
#define LSK_RATIO_SEQUENCE 1        // exp(mean of delta)
#define LSK_RATIO_SEQUENCE_TOKEN 2  // the same value, the gradient of a token's own ratio
#define LSK_RATIO_SEQUENCE_SUM 3    // exp(sum of delta)

// Estimators of the divergence from the reference, with the values of lockstep_kl_estimator.
#define LSK_KL_NONE 0
#define LSK_KL_K1 1
#define LSK_KL_K2 2
#define LSK_KL_K3 3
#define LSK_KL_ABS 4

// Where its gradient comes from, with the values of lockstep_kl_gradient.
#define LSK_KL_DIRECT 0
#define LSK_KL_RATIO 1
#define LSK_KL_SCORE 2
#define LSK_KL_OF_K2 3

// The arrays of a span.
enum {
    LSK_INPUT_CURRENT,
    LSK_INPUT_TRAINER,
    LSK_INPUT_REFERENCE,
    LSK_INPUT_ENTROPY,
    LSK_INPUT_ADVANTAGE,
    LSK_INPUT_WEIGHT,
    LSK_OBJECTIVE_INPUTS
};

// Tokens of one sequence, from its first that counts to its last. An array is NULL where it is not needed.
typedef struct {
    const void *_Nullable input[LSK_OBJECTIVE_INPUTS];
    int32_t format[LSK_OBJECTIVE_INPUTS];  // LSK_FP32, LSK_FP16, LSK_BF16 or LSK_FP64
    const uint8_t *_Nullable mask;         // not 0: the token counts
    const uint8_t *_Nullable kept;         // not 0: its policy term counts
    const uint8_t *_Nullable selected;     // not 0: picked by a covariance rule
    int64_t count;
    double advantage;  // of all tokens, where that array is NULL
} lsk_objective_span;

// Where the arrays of a batch are: the span of its first tokens, bytes from one row to the next, bytes of a token.
typedef struct {
    lsk_objective_span first;
    int64_t row_bytes[LSK_OBJECTIVE_INPUTS], size[LSK_OBJECTIVE_INPUTS];
    int64_t mask_row_bytes, kept_row_bytes, selected_row_bytes;
} lsk_objective_arrays;

// Writes the span of `count` tokens from a place on, all of this advantage unless each has its own.
void lsk_objective_span_at(lsk_objective_span *_Nonnull span, const lsk_objective_arrays *_Nonnull arrays, int64_t row,
                           int64_t column, int64_t count, double advantage);

// What an objective is; the same for all its tokens.
typedef struct {
    int32_t term, level, kl, kl_gradient;
    int32_t drop_rejected;  // 1: a token that is not kept does not count either
    int32_t exclude;        // 1: a token with a value that is not finite does not count
    double low, high;          // bounds of the ratio
    double log_low, log_high;  // their logarithms
    double dual;               // bound of the term of a negative advantage: -A dual; infinite: none
    double ratio_max;          // infinite: none
    double coefficient;
    double tau_positive, tau_negative;
    double shape_positive, rate_positive, shape_negative, rate_negative;
    double log_ratio_min, log_ratio_max;
    double kl_coefficient, kl_input, kl_output;
    double entropy_coefficient;
} lsk_objective_rule;

// Tokens of a span.
typedef struct {
    int64_t tokens;      // that count
    int64_t acting;      // of these, those whose policy term counts
    int64_t non_finite;  // that would count, if a value of theirs were finite
} lsk_objective_counts;

// The ratio of a sequence, where it has one.
typedef struct {
    double log_ratio;  // within the clamps
    double ratio;
    int64_t inside;    // all ones: not clamped; else 0
    double phi_positive, phi_negative;  // VESPO's weights
    double delta, k3;  // sums over tokens, for the report
    int64_t tokens;    // that count
    int64_t whole;     // not 0: all tokens of the span count, and of all the policy term does
    int64_t even;      // not 0: every token that counts moves the ratio, unless it was clamped
} lsk_objective_level;

// Sums over the counted tokens of a sequence. Token i of a span belongs to lane i mod 8; a lane adds its
// tokens in order, and the lanes are added by halves: a sum is a function of the span alone.
typedef struct {
    double policy;        // terms, weighted
    double kl, kl_term;   // the estimator; the same as the loss has it
    double entropy;
    double by_log_ratio;  // d (policy + kl) / d log ratio, of all tokens
    double delta, k3;     // delta; exp(delta) - 1 - delta
    double ratio, ratio_min, ratio_max;
    int64_t clamped;      // tokens whose log ratio was clamped
    int64_t low, high, dual;  // tokens at the lower bound, at the upper one, at the dual one
    int64_t kl_clamped;
} lsk_objective_sums;

#endif

// What the kernels of the exact divergences read and write.
#ifndef LSK_DIVERGENCE_H
#define LSK_DIVERGENCE_H

#include <stdint.h>

// How a logit x becomes y = soft_cap(round(x)) / temperature, in float64 after the rounding.
typedef struct {
    double temperature;
    double soft_cap;   // 0: none
    int32_t rounding;  // LSK_FP32 (none), LSK_FP16, LSK_BF16 or an emulated format
} lsk_divergence_rule;

// A row made ready.
typedef struct {
    double maximum;  // of y; -inf if all are
    int64_t top;     // the first index that has it
    double total;    // sum of exp(y - maximum)
    int32_t failed;  // 1: there is a NaN or +inf
} lsk_divergence_row;

// Sums over the vocabulary; those of the terms of two probabilities p (trainer) and q (rollout).
typedef struct {
    double kl_rollout_trainer;  // q ln(q / p) + p - q
    double kl_trainer_rollout;  // p ln(p / q) + q - p
    double difference;          // |p - q|
    double jensen_shannon;      // p ln(p / m) + q ln(q / m), m = (p + q) / 2
} lsk_divergence_sums;

#endif

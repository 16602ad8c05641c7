/* Weights and mask of a correction: token ratios truncated at 2 (TIS), and a sequence left out if one of its
 * tokens is all but impossible for the trainer (a veto). */
#include <lockstep.h>
#include <math.h>
#include <stdio.h>

enum { SEQUENCES = 3, TOKENS = 9 };

int main(void) {
    double trainer[TOKENS] = {-0.10, -1.20, -0.05, -2.30, -0.70, -0.40, -9.90, -0.30, -1.10};
    double rollout[TOKENS] = {-0.11, -2.20, -0.05, -2.25, -0.72, -0.38, -0.20, -0.30, -1.00};
    int64_t offsets[SEQUENCES + 1] = {0, 3, 5, 9}, tokens[1] = {TOKENS}, bounds[1] = {SEQUENCES + 1};
    float weights[TOKENS];
    uint8_t kept[TOKENS];
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT64, 1, tokens);
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT64, 1, tokens);
    lockstep_tensor at = lockstep_tensor_of(offsets, LOCKSTEP_INT64, 1, bounds);
    lockstep_tensor w = lockstep_tensor_of(weights, LOCKSTEP_FLOAT32, 1, tokens);
    lockstep_tensor k = lockstep_tensor_of(kept, LOCKSTEP_BOOL, 1, tokens);
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = &pi;
    batch.rollout_log_probs = &mu;
    batch.offsets = &at;
    lockstep_rejection veto = {
        LOCKSTEP_STATISTIC_RATIO, LOCKSTEP_LEVEL_SEQUENCE_EVERY, LOCKSTEP_POLICIES_TRAINER_ROLLOUT,
        LOCKSTEP_SIDE_BOTH, 1e-4, INFINITY};
    lockstep_correction_options options = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    options.high = 2;
    options.rejections = &veto;
    options.rejection_count = 1;
    lockstep_correction found = {.struct_size = sizeof found};
    if (lockstep_correct(&w, &k, &found, NULL, &batch, &options) != LOCKSTEP_OK) {
        fprintf(stderr, "%s\n", lockstep_last_error());
        return 1;
    }
    for (int i = 0; i < SEQUENCES; i++)
        for (int64_t t = offsets[i]; t < offsets[i + 1]; t++)
            printf("%.4f%s%s", weights[t], kept[t] ? "" : " out", t + 1 < offsets[i + 1] ? "  " : "\n");
    printf("%lld of %lld truncated, %lld of %lld sequences out\n", (long long)found.above,
           (long long)found.tokens, (long long)found.rejected_sequences, (long long)found.sequences);
    printf("mean ratio %.4f, mean weight %.4f, of those kept %.4f\n", found.ratio.mean, found.weight.mean,
           found.kept_weight.mean);
    return 0;
}

#include <lockstep.h>
#include <stdio.h>

int main(void) {
    float logits[2 * 4] = {1, 2, 3, 4, 0, 0, 8, 0}, trainer[2], rollout[2] = {-0.45f, -0.001f};
    int32_t targets[2] = {3, 2};
    int64_t matrix[2] = {2, 4}, vector[1] = {2};
    lockstep_tensor x = lockstep_tensor_of(logits, LOCKSTEP_FLOAT32, 2, matrix);
    lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, vector);
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT32, 1, vector);
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 1, vector);
    lockstep_mismatch found = {.struct_size = sizeof found};
    if (lockstep_log_probs(&pi, NULL, NULL, NULL, &x, &y, NULL) != LOCKSTEP_OK ||
        lockstep_mismatch_measure(&found, &pi, &mu, NULL, NULL, NULL) != LOCKSTEP_OK) {
        fprintf(stderr, "%s\n", lockstep_last_error());
        return 1;
    }
    printf("log-probs %.6f %.6f\n", trainer[0], trainer[1]);
    printf("mean |log ratio| %.6f, k3 %.3e\n", found.mean_abs_log_ratio.value, found.k3.value);
    return 0;
}

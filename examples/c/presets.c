/* A named algorithm: what it means, and a loss by it with one option changed. */
#include <lockstep.h>
#include <math.h>
#include <stdio.h>

static int check(lockstep_status status) {
    if (status != LOCKSTEP_OK) fprintf(stderr, "%s\n", lockstep_last_error());
    return status != LOCKSTEP_OK;
}

int main(void) {
    double trainer[3] = {log(0.5), log(0.25), log(0.5)}, rollout[3] = {log(0.125), log(0.25), log(0.5)};
    double current[3] = {log(0.5), log(0.25), log(0.25)}, advantage[1] = {1}, weight[3];
    int64_t shape[2] = {1, 3}, one[1] = {1};
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor theta = lockstep_tensor_of(current, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor a = lockstep_tensor_of(advantage, LOCKSTEP_FLOAT64, 1, one);
    lockstep_tensor weights = lockstep_tensor_of(weight, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = &pi;
    batch.rollout_log_probs = &mu;
    batch.current_log_probs = &theta;
    batch.advantages = &a;

    lockstep_preset preset = LOCKSTEP_PRESET_INIT;
    lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    if (check(lockstep_preset_read(&preset, &correction, NULL, &objective, "paper/grpo-token-tis"))) return 1;
    puts(preset.text);

    correction.high = 2; /* C = 2, as its released script has it */
    objective.length = 4;
    lockstep_correction corrected;
    corrected.struct_size = sizeof corrected;
    if (check(lockstep_correct(&weights, NULL, &corrected, NULL, &batch, &correction))) return 1;
    batch.weights = &weights;
    lockstep_objective_report report;
    report.struct_size = sizeof report;
    if (check(lockstep_objective_loss(&report, NULL, NULL, &batch, &objective))) return 1;
    printf("weights up to %.2f, loss %.4f\n", corrected.weight.max, report.loss);
    return 0;
}

/* Section 9 of the header: presets. */
#include "test.h"

#include <math.h>

static void every_preset_can_be_read(void) {
    size_t count = 0;
    const char *name;
    for (; (name = lockstep_preset_name(count)) != NULL; count++) {
        lockstep_preset preset = LOCKSTEP_PRESET_INIT;
        lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
        lockstep_advantage_options advantages = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
        lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
        CHECK_OK(lockstep_preset_read(&preset, &correction, &advantages, &objective, name));
        CHECK(preset.struct_size == sizeof preset && correction.struct_size == sizeof correction);
        CHECK(strcmp(preset.name, name) == 0 && strncmp(preset.text, name, strlen(name)) == 0);
        CHECK(preset.summary[0] && preset.source[0] && preset.doubts != NULL);
        CHECK((correction.rejections == NULL) == (correction.rejection_count == 0));
    }
    CHECK(count > 50);
    CHECK(lockstep_preset_name(SIZE_MAX) == NULL);
}

/* The options go into the functions as they are. */
static void a_preset_computes(void) {
    double trainer[4] = {-1, -2, -1, -0.5}, rollout[4] = {-1.5, -2, -1, -2.5}, current[4] = {-0.5, -2, -1, -0.5};
    double advantage[1] = {1}, weight[4], gradient[4];
    int64_t shape[2] = {1, 4}, one[1] = {1};
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor theta = lockstep_tensor_of(current, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor a = lockstep_tensor_of(advantage, LOCKSTEP_FLOAT64, 1, one);
    lockstep_tensor weights = lockstep_tensor_of(weight, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_tensor out = lockstep_tensor_of(gradient, LOCKSTEP_FLOAT64, 2, shape);
    lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    CHECK_OK(lockstep_preset_read(NULL, &correction, NULL, &objective, "paper/grpo-token-tis"));
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = &pi;
    batch.rollout_log_probs = &mu;
    batch.current_log_probs = &theta;
    batch.advantages = &a;
    CHECK_OK(lockstep_correct(&weights, NULL, NULL, NULL, &batch, &correction));
    CHECK(fabs(weight[0] - exp(0.5)) < 1e-12 && weight[1] == 1 && weight[3] == 3);
    batch.weights = &weights;
    lockstep_objective_report report;
    report.struct_size = sizeof report;
    CHECK(lockstep_objective_loss(&report, &out, NULL, &batch, &objective) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(lockstep_last_error(), "length") != NULL);
    objective.length = 4;
    CHECK_OK(lockstep_objective_loss(&report, &out, NULL, &batch, &objective));
    CHECK(gradient[0] == 0 && gradient[1] == -0.25 && gradient[3] == -0.75);
}

static void what_is_wrong_is_refused(void) {
    struct { lockstep_preset preset; lockstep_correction_options correction; } got, canary;
    memset(&got, TEST_CANARY, sizeof got);
    got.preset.struct_size = sizeof got.preset;
    got.correction.struct_size = sizeof got.correction;
    canary = got;
    CHECK(lockstep_preset_read(&got.preset, &got.correction, NULL, NULL, "paper/grop")
          == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(lockstep_last_error(), "paper/grpo") != NULL);
    CHECK(lockstep_preset_read(&got.preset, &got.correction, NULL, NULL, NULL)
          == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_preset_read(&got.preset, &got.correction, NULL, NULL, "\xff")
          == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(memcmp(&got, &canary, sizeof got) == 0);
    got.correction.struct_size = canary.correction.struct_size = 3;
    CHECK(lockstep_preset_read(&got.preset, &got.correction, NULL, NULL, "paper/grpo")
          == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(lockstep_last_error(), "correction: struct_size") != NULL);
    CHECK(memcmp(&got, &canary, sizeof got) == 0);
}

int main(void) {
    TEST(every_preset_can_be_read);
    TEST(a_preset_computes);
    TEST(what_is_wrong_is_refused);
    return test_report();
}

/* Advantages: two prompts with four answers each, under three estimators, and the penalty of long answers. */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { ANSWERS = 8 };

static void check(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static void print(const char *name, const double *values) {
    printf("%-14s", name);
    for (int i = 0; i < ANSWERS; i++) printf(" %7.4f", values[i]);
    printf("\n");
}

int main(void) {
    float rewards[ANSWERS] = {1, 0, 0, 0, 1, 1, 1, 0};
    int64_t prompts[ANSWERS] = {0, 0, 0, 0, 1, 1, 1, 1};
    int32_t lengths[ANSWERS] = {700, 900, 950, 1000, 400, 600, 980, 1000};
    double out[ANSWERS];
    int64_t shape[1] = {ANSWERS};
    lockstep_tensor r = lockstep_tensor_of(rewards, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor groups = lockstep_tensor_of(prompts, LOCKSTEP_INT64, 1, shape);
    lockstep_tensor tokens = lockstep_tensor_of(lengths, LOCKSTEP_INT32, 1, shape);
    lockstep_tensor a = lockstep_tensor_of(out, LOCKSTEP_FLOAT64, 1, shape);
    lockstep_rewards earned = LOCKSTEP_REWARDS_INIT;
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    lockstep_advantage_options options = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    earned.rewards = &r;
    batch.groups = &groups;

    check(lockstep_advantages(&a, NULL, &earned, &batch, &options));
    print("grpo", out);
    options.estimator = LOCKSTEP_ADVANTAGE_DR_GRPO;
    check(lockstep_advantages(&a, NULL, &earned, &batch, &options));
    print("dr_grpo", out);
    options.estimator = LOCKSTEP_ADVANTAGE_LEAVE_ONE_OUT;
    check(lockstep_advantages(&a, NULL, &earned, &batch, &options));
    print("leave_one_out", out);
    check(lockstep_overlong_penalty(&a, &tokens, 1000, 200, 1.0));
    print("overlong", out);
    return 0;
}

/* Reinforcement learning, step by step, with prompts and rewards of one's own: chains y' = (a y + b) mod 7, and the share
 * of a response that is right before its first error. Trainer and rollout engine are FP16: no mismatch.
 * usage: run FOLDER */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>

enum { STEPS = 4, EVALUATED = 8, TOKENS = 32 };

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static int32_t prompt(void *context, int32_t *tokens, size_t *count, size_t room, int64_t problem) {
    (void)context;
    if (room < 3) return 1;
    tokens[0] = (int32_t)(1 + problem % 6);
    tokens[1] = (int32_t)(problem / 6 % 7);
    tokens[2] = (int32_t)(problem / 42 % 7);
    *count = 3;
    return 0;
}

/* The ids of a digit's two fonts are 7 apart. */
static int32_t reward(void *context, double *reward, int64_t step, int64_t problem, int64_t sample,
                      const int32_t *prompt, size_t prompt_count, const int32_t *response, size_t response_count) {
    (void)context, (void)step, (void)problem, (void)sample, (void)prompt_count;
    size_t right = 0;
    for (int32_t y = prompt[2]; right < response_count; right++) {
        y = (prompt[0] * y + prompt[1]) % 7;
        if (response[right] >= 14 || response[right] % 7 != y) break;
    }
    *reward = (double)right / TOKENS;
    return 0;
}

static double evaluate(lockstep_run *run) {
    int64_t problems[EVALUATED];
    double rewards[EVALUATED], sum = 0.0;
    for (int i = 0; i < EVALUATED; i++) problems[i] = 1000 + i;
    must(lockstep_run_evaluate(rewards, run, problems, EVALUATED, 8, 7, 1.0));
    for (int i = 0; i < EVALUATED; i++) sum += rewards[i];
    return sum / EVALUATED;
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: run FOLDER\n"), 2;
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_run *run;
    environment.prompt = prompt;
    environment.reward = reward;
    environment.max_tokens = TOKENS;
    options.model = arguments[1];
    options.algorithm = "paper/grpo";
    options.prompts = 8;
    must(lockstep_run_create(&run, &options, &environment));
    printf("before: %.6f\n", evaluate(run));
    for (int step = 0; step < STEPS; step++) {
        must(lockstep_run_step(&metrics, run));
        printf("step %d: reward %.6f, gradient norm %.9f, entropy %.9f, KL %g\n", (int)metrics.step,
               metrics.reward_mean, metrics.gradient_norm, metrics.entropy, metrics.k3);
    }
    printf("after: %.6f\n", evaluate(run));
    lockstep_run_destroy(run);
    return 0;
}

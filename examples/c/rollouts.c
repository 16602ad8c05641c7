/* Rollouts from elsewhere: a run's policy as bytes, its requests, and an engine that could be on another machine. What
 * it draws is given back, and the step has the bits of a run that draws by itself. usage: rollouts FOLDER */
#include <lockstep.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SAMPLES = 8 };

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

/* The policy, as another process would have it: the bytes are all that it needs. */
static lockstep_model *policy(lockstep_run *run, const lockstep_recipe *recipe, size_t *size) {
    lockstep_model *model;
    must(lockstep_run_policy(NULL, size, run));
    void *bytes = malloc(*size);
    if (bytes == NULL) exit(1);
    must(lockstep_run_policy(bytes, size, run));
    must(lockstep_model_load_bytes(&model, bytes, *size, recipe));
    free(bytes);
    return model;
}

/* Draws what the next step asks for, and gives it. */
static void draw(lockstep_run *run, const lockstep_model *model) {
    lockstep_engine_options settings = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_rollout_request request = LOCKSTEP_ROLLOUT_REQUEST_INIT;
    lockstep_engine *engine = NULL;
    lockstep_rollout rollout;
    size_t requests, running = 1;
    must(lockstep_run_request(NULL, &requests, run, 0));
    for (size_t index = 0; index < requests; index++) {
        must(lockstep_run_request(&request, NULL, run, index));
        if (engine == NULL) {
            settings.max_tokens = request.max_tokens;
            settings.temperature = request.temperature;
            settings.seed = request.seed;
            must(lockstep_engine_create(&engine, model, &settings));
        }
        uint64_t ids[SAMPLES];
        int64_t shape[1] = {(int64_t)request.prompt_count};
        for (int i = 0; i < SAMPLES; i++) ids[i] = request.first_id + (uint64_t)i;
        lockstep_tensor prompt = lockstep_tensor_of((void *)(uintptr_t)request.prompt, LOCKSTEP_INT32, 1, shape);
        must(lockstep_engine_add(engine, &prompt, ids, SAMPLES));
    }
    while (running > 0) must(lockstep_engine_step(engine, &running, NULL));
    for (;;) {
        must(lockstep_engine_take(&rollout, engine, 0));
        if (rollout.token_count < 0) break;
        must(lockstep_run_give(run, request.step, &rollout, 1));
    }
    lockstep_engine_destroy(engine);
}

int main(int count, char **arguments) {
    if (count != 2) return fprintf(stderr, "usage: rollouts FOLDER\n"), 2;
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_run_metrics given = LOCKSTEP_RUN_METRICS_INIT, drawn = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_task *task;
    lockstep_run *run, *alone;
    must(lockstep_task_create(&task, "chain", NULL));
    must(lockstep_recipe_named(&recipe, "bf16+fused")); /* an engine that is not the trainer's: there is a mismatch */
    environment.task = task;
    options.model = arguments[1];
    options.algorithm = "paper/grpo-token-tis";
    options.rollout = &recipe;
    options.prompts = 4;
    options.samples = SAMPLES;
    must(lockstep_run_create(&run, &options, &environment));
    must(lockstep_run_create(&alone, &options, &environment));
    for (int step = 0; step < 3; step++) {
        size_t size;
        lockstep_model *model = policy(run, &recipe, &size);
        draw(run, model);
        lockstep_model_destroy(model);
        must(lockstep_run_step(&given, run));
        must(lockstep_run_step(&drawn, alone));
        printf("step %d: policy %zu bytes, reward %.6f, KL %.6e, loss %.9f; drawn here: %s\n", (int)given.step, size,
               given.reward_mean, given.k3, given.loss,
               memcmp(&given, &drawn, sizeof given) == 0 ? "the same bits" : "different");
    }
    lockstep_run_destroy(run);
    lockstep_run_destroy(alone);
    lockstep_task_destroy(task);
    return 0;
}

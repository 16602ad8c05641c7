/* Section 14 of the header: runs. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    struct {
        lockstep_run *run;
        lockstep_supervised *supervised;
        lockstep_run_metrics metrics;
        double rewards[4];
        int64_t problems[4];
    } outputs;
} fixture;

static lockstep_task *chain(void) {
    lockstep_task *task = NULL;
    lockstep_task_options options = LOCKSTEP_TASK_OPTIONS_INIT;
    options.size = 5;
    CHECK_OK(lockstep_task_create(&task, "chain", &options));
    return task;
}

static lockstep_run_options small(void) {
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    options.prompts = 2;
    options.samples = 3;
    options.algorithm = "paper/grpo";
    options.model_seed = 1;
    return options;
}

static void a_run_does_not_depend_on_threads(void) {
    lockstep_task *task = chain();
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_metrics found[2] = {LOCKSTEP_RUN_METRICS_INIT, LOCKSTEP_RUN_METRICS_INIT};
    environment.task = task;
    for (int threads = 1; threads <= 2; threads++) {
        lockstep_run *run = NULL;
        lockstep_run_options options = small();
        options.threads = threads;
        CHECK_OK(lockstep_run_create(&run, &options, &environment));
        for (int step = 0; step < 3; step++) CHECK_OK(lockstep_run_step(&found[threads - 1], run));
        lockstep_run_destroy(run);
    }
    CHECK(memcmp(&found[0], &found[1], sizeof found[0]) == 0);
    CHECK(found[0].step == 3 && found[0].responses == 6 && found[0].tokens == 30 && found[0].k3 == 0);
    lockstep_run_destroy(NULL);
    lockstep_task_destroy(task);
}

static int32_t any_prompt(void *context, int32_t *tokens, size_t *count, size_t room, int64_t problem) {
    tokens[0] = (int32_t)(problem % 7);
    tokens[1] = 3;
    *count = 2;
    return context != NULL || room < 2;
}

static int32_t any_reward(void *context, double *reward, int64_t step, int64_t problem, int64_t sample,
                          const int32_t *prompt, size_t prompt_count, const int32_t *response, size_t response_count) {
    *reward = (double)(response[0] % 3) + (double)sample;
    return context != NULL || step < 1 || problem < 0 || prompt[1] != 3 || prompt_count != 2 || response_count == 0;
}

/* On two threads one may find no work in a call and much in the next: nothing of the call before may be left with it. Which
 * gets what is chance, so there are many runs: of one that keeps something one in ten differs. */
static void no_thread_keeps_what_it_had(void) {
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_metrics alone = LOCKSTEP_RUN_METRICS_INIT;
    int different = 0;
    environment.prompt = any_prompt;
    environment.reward = any_reward;
    environment.max_tokens = 4;
    for (int again = 0; again <= 60; again++) {
        lockstep_run *run = NULL;
        lockstep_run_metrics found = LOCKSTEP_RUN_METRICS_INIT;
        lockstep_run_options options = small();
        options.threads = again == 0 ? 1 : 2;
        CHECK_OK(lockstep_run_create(&run, &options, &environment));
        for (int step = 0; step < 8; step++) CHECK_OK(lockstep_run_step(&found, run));
        lockstep_run_destroy(run);
        if (again == 0) alone = found;
        if (memcmp(&alone, &found, sizeof found) != 0) different++;
    }
    CHECK(different == 0);
}

/* What callbacks count, and when they refuse. */
typedef struct {
    int prompts, rewards, refuse;
    double value;
} calls;

static int32_t write_prompt(void *context, int32_t *tokens, size_t *count, size_t room, int64_t problem) {
    calls *seen = context;
    CHECK(room >= 64);
    seen->prompts++;
    tokens[0] = (int32_t)(problem % 7);
    tokens[1] = 3;
    *count = seen->refuse == 2 ? room + 1 : 2;
    return seen->refuse == 1;
}

static int32_t write_reward(void *context, double *reward, int64_t step, int64_t problem, int64_t sample,
                            const int32_t *prompt, size_t prompt_count, const int32_t *response,
                            size_t response_count) {
    calls *seen = context;
    CHECK((step == 1 || step == -1) && sample >= 0 && sample < 3);
    CHECK(prompt_count == 2 && prompt[0] == problem % 7 && response_count == 4 && response[0] >= 0);
    seen->rewards++;
    *reward = seen->value + (double)sample;
    return seen->refuse == 3;
}

static void callbacks_give_prompts_and_rewards(void) {
    calls seen = {0, 0, 0, 0};
    lockstep_run *run = NULL;
    lockstep_run_options options = small();
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    int64_t problems[2] = {4, 9};
    double rewards[2];
    environment.prompt = write_prompt;
    environment.reward = write_reward;
    environment.context = &seen;
    environment.max_tokens = 4;
    CHECK_OK(lockstep_run_create(&run, &options, &environment));

    seen.refuse = 1;
    WRONG(INVALID_ARGUMENT, "prompt of problem 0", lockstep_run_step(&metrics, run));
    seen.refuse = 2;
    WRONG(INVALID_ARGUMENT, "prompt of problem 0", lockstep_run_step(&metrics, run));
    seen.refuse = 3;
    WRONG(INVALID_ARGUMENT, "step 1: reward of problem 0, sample 0", lockstep_run_step(&metrics, run));
    seen.refuse = 0;
    seen.value = NAN;
    WRONG(NON_FINITE, "step 1: reward of problem 0, sample 0", lockstep_run_step(&metrics, run));
    seen.value = 0;
    CHECK_OK(lockstep_run_step(&metrics, run));
    CHECK(metrics.step == 1 && metrics.reward_mean == 1 && metrics.equal_groups == 0 && metrics.updates + metrics.skipped == 2);
    CHECK_OK(lockstep_run_evaluate(rewards, run, problems, 2, 3, 0, 1));
    CHECK(rewards[0] == 1 && rewards[1] == 1);
    lockstep_run_destroy(run);
}

static void a_run_goes_on(void) {
    char folder[] = "/tmp/lockstep-run-XXXXXX", command[64];
    int64_t step = 7;
    lockstep_task *task = chain();
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_options options = small();
    lockstep_run_metrics one = LOCKSTEP_RUN_METRICS_INIT, other = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_run *run = NULL, *again = NULL;
    CHECK(mkdtemp(folder) != NULL);
    environment.task = task;
    CHECK_OK(lockstep_run_create(&run, &options, &environment));
    CHECK_OK(lockstep_run_create(&again, &options, &environment));
    CHECK_OK(lockstep_run_resume(&step, run, folder, 0));
    CHECK(step == 0);
    CHECK_OK(lockstep_run_step(&one, run));
    CHECK_OK(lockstep_run_save(run, folder, 2));
    CHECK_OK(lockstep_run_step(&one, run));
    CHECK_OK(lockstep_run_resume(&step, again, folder, 0));
    CHECK(step == 1);
    CHECK_OK(lockstep_run_step(&other, again));
    CHECK(memcmp(&one, &other, sizeof one) == 0);
    WRONG(INVALID_ARGUMENT, "has taken 2 steps", lockstep_run_resume(NULL, again, folder, 0));
    WRONG(INVALID_ARGUMENT, "folder", lockstep_run_save(run, NULL, 2));
    WRONG(FILE, "cannot be made", lockstep_run_save(run, "/nowhere/at/all", 2));
    lockstep_run_destroy(run);
    lockstep_run_destroy(again);
    lockstep_task_destroy(task);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
}

/* The responses of a step, drawn by an engine of the run's policy, are those that the step draws. */
static void rollouts_from_elsewhere(void) {
    lockstep_task *task = chain();
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_options options = small();
    lockstep_run_metrics one = LOCKSTEP_RUN_METRICS_INIT, other = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_recipe recipe = {sizeof(lockstep_recipe), 0, 0, 0, 0, 0, 0, 0};
    lockstep_run *alone = NULL, *run = NULL;
    environment.task = task;
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16"));
    options.rollout = &recipe;
    CHECK_OK(lockstep_run_create(&alone, &options, &environment));
    CHECK_OK(lockstep_run_create(&run, &options, &environment));
    for (int64_t step = 1; step <= 2; step++) {
        size_t size = 0, count = 0, running = 1;
        lockstep_model *model = NULL;
        lockstep_engine *engine = NULL;
        lockstep_rollout rollout;
        lockstep_rollout_request request = LOCKSTEP_ROLLOUT_REQUEST_INIT;
        lockstep_engine_options settings = LOCKSTEP_ENGINE_OPTIONS_INIT;
        char *bytes;
        CHECK_OK(lockstep_run_policy(NULL, &size, run));
        bytes = malloc(size);
        CHECK_OK(lockstep_run_policy(bytes, &size, run));
        CHECK_OK(lockstep_model_load_bytes(&model, bytes, size, &recipe));
        WRONG(BAD_DATA, "bytes", lockstep_model_load_bytes(&model, bytes, size - 1, &recipe));
        size--;
        WRONG(INVALID_ARGUMENT, "size", lockstep_run_policy(bytes, &size, run));
        free(bytes);
        CHECK_OK(lockstep_run_request(NULL, &count, run, 0));
        CHECK(count == 2);
        WRONG(INVALID_ARGUMENT, "index", lockstep_run_request(&request, NULL, run, 2));
        for (size_t index = 0; index < count; index++) {
            uint64_t ids[3];
            lockstep_tensor prompt;
            int64_t length;
            CHECK_OK(lockstep_run_request(&request, NULL, run, index));
            CHECK(request.step == step && request.samples == 3 && request.max_tokens == 5 && request.temperature == 1);
            CHECK(request.stop_id_count == 0);
            if (engine == NULL) {
                settings.max_tokens = request.max_tokens;
                settings.seed = request.seed;
                CHECK_OK(lockstep_engine_create(&engine, model, &settings));
            }
            for (int64_t sample = 0; sample < 3; sample++) ids[sample] = request.first_id + (uint64_t)sample;
            length = (int64_t)request.prompt_count;
            prompt = lockstep_tensor_of((void *)(intptr_t)request.prompt, LOCKSTEP_INT32, 1, &length);
            CHECK_OK(lockstep_engine_add(engine, &prompt, ids, 3));
        }
        while (running > 0) CHECK_OK(lockstep_engine_step(engine, &running, NULL));
        for (;;) {
            CHECK_OK(lockstep_engine_take(&rollout, engine, 0));
            if (rollout.token_count < 0) break;
            WRONG(INVALID_ARGUMENT, "step is 7", lockstep_run_give(run, 7, &rollout, 1));
            CHECK_OK(lockstep_run_give(run, step, &rollout, 1));
            rollout.tokens = NULL;
            WRONG(INVALID_ARGUMENT, "tokens", lockstep_run_give(run, step, &rollout, 1));
            rollout.token_count = -1;
            WRONG(INVALID_ARGUMENT, "token_count", lockstep_run_give(run, step, &rollout, 1));
        }
        CHECK_OK(lockstep_run_step(&one, alone));
        CHECK_OK(lockstep_run_step(&other, run));
        CHECK(memcmp(&one, &other, sizeof one) == 0);
        lockstep_engine_destroy(engine);
        lockstep_model_destroy(model);
    }
    WRONG(INVALID_ARGUMENT, "rollouts", lockstep_run_give(run, 3, NULL, 1));
    WRONG(INVALID_ARGUMENT, "count", lockstep_run_give(run, 3, NULL, (size_t)-1));
    WRONG(INVALID_ARGUMENT, "run is NULL", lockstep_run_give(NULL, 1, NULL, 0));
    WRONG(INVALID_ARGUMENT, "size", lockstep_run_policy(NULL, NULL, run));
    WRONG(INVALID_ARGUMENT, "bytes is NULL", lockstep_model_load_bytes((lockstep_model **)&f.outputs.run, NULL, 0, NULL));
    lockstep_run_destroy(alone);
    lockstep_run_destroy(run);
    lockstep_task_destroy(task);
}

static void supervised_training(void) {
    lockstep_task *task = chain();
    lockstep_supervised_options options = LOCKSTEP_SUPERVISED_OPTIONS_INIT;
    lockstep_supervised_metrics metrics = LOCKSTEP_SUPERVISED_METRICS_INIT;
    lockstep_supervised *run = NULL;
    double first;
    options.task = task;
    options.steps = 30;
    options.batch = 8;
    CHECK_OK(lockstep_supervised_create(&run, &options));
    CHECK_OK(lockstep_supervised_step(&metrics, run));
    first = metrics.loss;
    for (int step = 0; step < 29; step++) CHECK_OK(lockstep_supervised_step(&metrics, run));
    CHECK(metrics.step == 30 && metrics.tokens == 40 && metrics.loss < first && metrics.learning_rate == 0);
    lockstep_supervised_destroy(run);
    lockstep_supervised_destroy(NULL);
    WRONG(INVALID_ARGUMENT, "task", (options.task = NULL, lockstep_supervised_create(&f.outputs.supervised, &options)));
    WRONG(INVALID_ARGUMENT, "options", lockstep_supervised_create(&f.outputs.supervised, NULL));
    WRONG(INVALID_ARGUMENT, "batch", (options.task = task, options.batch = 0, lockstep_supervised_create(&f.outputs.supervised, &options)));
    lockstep_task_destroy(task);
}

static void bad_options_are_refused(void) {
    lockstep_task *task = chain();
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT, none = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    int64_t problem = 0;
    environment.task = task;
#define REFUSED_WITH(word, change) \
    do { \
        lockstep_run_options options = small(); \
        WRONG(INVALID_ARGUMENT, word, (change, lockstep_run_create(&f.outputs.run, &options, &environment))); \
    } while (0)
    REFUSED_WITH("prompts", options.prompts = -1);
    REFUSED_WITH("samples", options.samples = 0);
    REFUSED_WITH("updates", options.updates = 3);
    REFUSED_WITH("temperature", options.temperature = 0);
    REFUSED_WITH("paper/grpo", options.algorithm = "paper/grpp");
    REFUSED_WITH("policies", options.policies = 2);
    REFUSED_WITH("beta1", options.beta1 = 1);
    REFUSED_WITH("max_norm", options.max_norm = -1);
    REFUSED_WITH("deviation", options.deviation = 0);
    REFUSED_WITH("learning_steps", options.learning_steps = 1);
    REFUSED_WITH("struct_size", options.struct_size = 12);
    REFUSED_WITH("environment", environment.task = NULL);
    environment.task = task;
    environment.problems = &problem;
    REFUSED_WITH("problems", options.prompts = 2);
    {
        lockstep_run_options options = small();
        WRONG(INVALID_ARGUMENT, "run", lockstep_run_create(NULL, &options, &none));
        WRONG(INVALID_ARGUMENT, "environment", lockstep_run_create(&f.outputs.run, &options, NULL));
        WRONG(INVALID_ARGUMENT, "options", lockstep_run_create(&f.outputs.run, NULL, &none));
        WRONG(INVALID_ARGUMENT, "run", lockstep_run_step(&metrics, NULL));
        WRONG(INVALID_ARGUMENT, "model", lockstep_find_perfectible(f.outputs.problems, 4, NULL, &environment, 8, 8, 0.2, 0.8, 0, 0));
    }
    lockstep_task_destroy(task);
}

int main(void) {
    TEST(a_run_does_not_depend_on_threads);
    TEST(no_thread_keeps_what_it_had);
    TEST(callbacks_give_prompts_and_rewards);
    TEST(a_run_goes_on);
    TEST(rollouts_from_elsewhere);
    TEST(supervised_training);
    TEST(bad_options_are_refused);
    return test_report();
}

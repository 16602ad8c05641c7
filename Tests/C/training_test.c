/* Sections 11 and 12 of the header: loss scalers, AdamW, tasks. */
#include "test.h"

#include <math.h>
#include <stdlib.h>

typedef struct {
    struct {
        lockstep_scaler *scaler;
        lockstep_task *task;
        lockstep_scaler_report report;
        lockstep_gradient_norm norm;
        double value;
        int32_t tokens[64];
    } outputs;
} fixture;

static void a_scaler_backs_off_and_is_restored(void) {
    lockstep_scaler *scaler = NULL, *again = NULL;
    lockstep_scaler_report report = {.struct_size = sizeof report};
    lockstep_scaler_options options = {.struct_size = sizeof options};
    unsigned char bytes[256];
    size_t size = sizeof bytes;
    CHECK_OK(lockstep_scaler_options_named(&options, "deepspeed"));
    CHECK(options.growth_interval == 1000 && options.hysteresis == 2 && options.minimum_scale == 1);
    CHECK_OK(lockstep_scaler_create(&scaler, &options));
    CHECK_OK(lockstep_scaler_update(&report, scaler, 1));
    CHECK(report.skip == 1 && report.scale == 65536 && report.skipped == 1 && report.last_skipped == 0);
    CHECK_OK(lockstep_scaler_save(bytes, &size, scaler));
    CHECK_OK(lockstep_scaler_load(&again, bytes, size));
    CHECK_OK(lockstep_scaler_update(&report, again, 1));
    CHECK(report.scale == 32768 && report.backoffs == 1 && !report.at_floor);
    lockstep_scaler_destroy(again);

    WRONG(BAD_DATA, "bytes", (bytes[40] ^= 1, lockstep_scaler_load(&f.outputs.scaler, bytes, size)));
    WRONG(BAD_DATA, "bytes", lockstep_scaler_load(&f.outputs.scaler, bytes, 3));
    WRONG(INVALID_ARGUMENT, "size", lockstep_scaler_load(&f.outputs.scaler, bytes, SIZE_MAX));
    WRONG(INVALID_ARGUMENT, "bytes", lockstep_scaler_load(&f.outputs.scaler, NULL, size));
    WRONG(INVALID_ARGUMENT, "scaler", lockstep_scaler_load(NULL, bytes, size));
    WRONG(INVALID_ARGUMENT, "scaler", lockstep_scaler_create(NULL, NULL));
    WRONG(INVALID_ARGUMENT, "kind", (options.kind = 9, lockstep_scaler_create(&f.outputs.scaler, &options)));
    WRONG(INVALID_ARGUMENT, "struct_size", (options.struct_size = 8, lockstep_scaler_create(&f.outputs.scaler, &options)));
    WRONG(INVALID_ARGUMENT, "report", lockstep_scaler_update(NULL, scaler, 0));
    WRONG(INVALID_ARGUMENT, "scaler", lockstep_scaler_update(&report, NULL, 0));
    WRONG(INVALID_ARGUMENT, "scaler", lockstep_scaler_read(&report, NULL));
    WRONG(INVALID_ARGUMENT, "options", lockstep_scaler_get_options(NULL, scaler));
    WRONG(INVALID_ARGUMENT, "name", lockstep_scaler_options_named((options.struct_size = sizeof options, &options), NULL));
    WRONG(INVALID_ARGUMENT, "adam", lockstep_scaler_options_named(&options, "adam"));
    WRONG(INVALID_ARGUMENT, "size", (size = 3, lockstep_scaler_save(f.outputs.tokens, &size, scaler)));
    WRONG(INVALID_ARGUMENT, "maxima", lockstep_scaler_replay(&report, NULL, NULL, NULL, 65520, NULL));
    lockstep_scaler_destroy(scaler);
    lockstep_scaler_destroy(NULL);
}

static void a_step_of_adamw(void) {
    float masters[3] = {1, 1, 1}, first[3] = {0}, second[3] = {0}, gradients[3] = {4, -4, 2};
    int64_t shape[1] = {3}, two[1] = {2};
    lockstep_tensor p = lockstep_tensor_of(masters, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor m = lockstep_tensor_of(first, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor v = lockstep_tensor_of(second, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor g = lockstep_tensor_of(gradients, LOCKSTEP_FLOAT32, 1, shape), other = g;
    lockstep_gradient_norm norm;
    lockstep_gradient_options measure = LOCKSTEP_GRADIENT_OPTIONS_INIT;
    lockstep_adamw_options options = LOCKSTEP_ADAMW_OPTIONS_INIT;
    measure.scale = 2;
    measure.max_norm = 1.5;
    CHECK_OK(lockstep_gradients_measure(&norm, &g, 1, &measure));
    CHECK(norm.norm == 3 && norm.largest == 4 && norm.non_finite == 0 && fabs(norm.factor - 0.25) < 1e-6);
    options.learning_rate = 0.5;
    options.weight_decay = 0;
    options.gradient_scale = norm.factor;
    CHECK_OK(lockstep_adamw_step(&p, &m, &v, NULL, &g, &options));
    CHECK(fabs(masters[0] - 0.5) < 1e-6 && fabs(masters[1] - 1.5) < 1e-6 && fabs(masters[2] - 0.5) < 1e-6);

    const float before = masters[0];
    other.shape = two;
    WRONG(INVALID_ARGUMENT, "gradients", lockstep_adamw_step(&p, &m, &v, NULL, &other, NULL));
    WRONG(INVALID_ARGUMENT, "masters", lockstep_adamw_step(NULL, &m, &v, NULL, &g, NULL));
    WRONG(INVALID_ARGUMENT, "first_moments", lockstep_adamw_step(&p, NULL, &v, NULL, &g, NULL));
    WRONG(INVALID_ARGUMENT, "compensation", lockstep_adamw_step(&p, &m, &v, &g, &g, NULL));
    WRONG(INVALID_ARGUMENT, "rounding", (options.rounding = 7, lockstep_adamw_step(&p, &m, &v, NULL, &g, &options)));
    WRONG(INVALID_ARGUMENT, "norm", lockstep_gradients_measure(NULL, &g, 1, NULL));
    WRONG(INVALID_ARGUMENT, "gradients", lockstep_gradients_measure(&f.outputs.norm, NULL, 1, NULL));
    WRONG(INVALID_ARGUMENT, "count", lockstep_gradients_measure(&f.outputs.norm, &g, SIZE_MAX, NULL));
    WRONG(INVALID_ARGUMENT, "reserved", (measure.reserved = 1, lockstep_gradients_measure(&f.outputs.norm, &g, 1, &measure)));
    gradients[1] = INFINITY;
    WRONG(NON_FINITE, "element 1", lockstep_adamw_step(&p, &m, &v, NULL, &g, NULL));
    CHECK(masters[0] == before);
    CHECK_OK(lockstep_gradients_measure(&norm, &g, 1, NULL));
    CHECK(norm.non_finite == 1 && !isfinite(norm.norm));

    lockstep_schedule_options schedule = LOCKSTEP_SCHEDULE_OPTIONS_INIT;
    double rate;
    CHECK_OK(lockstep_learning_rate(&rate, 1, NULL));
    CHECK(rate == 0.001);
    WRONG(INVALID_ARGUMENT, "rate", lockstep_learning_rate(NULL, 1, NULL));
    WRONG(INVALID_ARGUMENT, "step", lockstep_learning_rate(&f.outputs.value, 0, NULL));
    WRONG(INVALID_ARGUMENT, "shape", (schedule.shape = 3, lockstep_learning_rate(&f.outputs.value, 1, &schedule)));
}

static void a_task(void) {
    lockstep_task *task = NULL;
    lockstep_task_info info = {.struct_size = sizeof info};
    lockstep_task_options options = LOCKSTEP_TASK_OPTIONS_INIT;
    int32_t prompt[64], response[64];
    size_t prompt_count = 64, count = 64, small = 2;
    double reward = 0;
    char text[64];
    options.size = 5;
    CHECK_OK(lockstep_task_create(&task, "reverse", &options));
    CHECK_OK(lockstep_task_get_info(&info, task));
    CHECK(info.vocab == 28 && info.stop_id == 27 && info.longest_response == 6 && info.problems == 0);
    CHECK_OK(lockstep_task_prompt(prompt, &prompt_count, task, 3, 1));
    CHECK_OK(lockstep_task_demonstration(response, &count, task, 3, 1, 0));
    CHECK(prompt_count == 6 && count == 6);
    int64_t prompt_shape[1] = {6}, shape[1] = {6};
    lockstep_tensor x = lockstep_tensor_of(prompt, LOCKSTEP_INT32, 1, prompt_shape);
    lockstep_tensor y = lockstep_tensor_of(response, LOCKSTEP_INT32, 1, shape);
    CHECK_OK(lockstep_task_reward(&reward, task, &x, &y));
    CHECK(reward == 1);
    count = sizeof text;
    CHECK_OK(lockstep_task_decode(text, &count, task, &y));
    CHECK(count == 7 && text[5] == '\n' && text[6] == 0);

    WRONG(INVALID_ARGUMENT, "count", lockstep_task_prompt(f.outputs.tokens, &small, task, 0, 0));
    WRONG(INVALID_ARGUMENT, "count", lockstep_task_prompt(f.outputs.tokens, NULL, task, 0, 0));
    WRONG(INVALID_ARGUMENT, "index", lockstep_task_prompt(f.outputs.tokens, &count, task, -1, 0));
    WRONG(INVALID_ARGUMENT, "error_rate", lockstep_task_demonstration(f.outputs.tokens, &count, task, 0, 0, 2));
    WRONG(INVALID_ARGUMENT, "character 1", lockstep_task_encode(f.outputs.tokens, &count, task, "a!"));
    WRONG(INVALID_ARGUMENT, "UTF-8", lockstep_task_encode(f.outputs.tokens, &count, task, "\xff"));
    WRONG(INVALID_ARGUMENT, "text", lockstep_task_encode(f.outputs.tokens, &count, task, NULL));
    WRONG(INVALID_ARGUMENT, "reward", lockstep_task_reward(NULL, task, &x, &y));
    WRONG(INVALID_ARGUMENT, "prompt", lockstep_task_reward(&f.outputs.value, task, NULL, &y));
    WRONG(INVALID_ARGUMENT, "response", lockstep_task_reward(&f.outputs.value, task, &x, NULL));
    WRONG(INVALID_ARGUMENT, "task", lockstep_task_reward(&f.outputs.value, NULL, &x, &y));
    WRONG(INVALID_ARGUMENT, "task", lockstep_task_create(NULL, "sort", NULL));
    WRONG(INVALID_ARGUMENT, "name", lockstep_task_create(&f.outputs.task, NULL, NULL));
    WRONG(INVALID_ARGUMENT, "size", (options.size = -1, lockstep_task_create(&f.outputs.task, "sort", &options)));
    WRONG(FILE, "none", lockstep_task_create(&f.outputs.task, "file:/none", NULL));
    lockstep_task_destroy(task);
    lockstep_task_destroy(NULL);
}

int main(void) {
    TEST(a_scaler_backs_off_and_is_restored);
    TEST(a_step_of_adamw);
    TEST(a_task);
    return test_report();
}

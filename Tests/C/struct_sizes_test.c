/* Every struct that may grow, of another version than the library's: shorter, as older programs have it, and longer, as
 * newer ones do. A row for each; abi/layout.h says how many there are.
 *
 * What is read: fields that a caller does not know keep their defaults, fields that the library does not know must be zero.
 * What is written: as many bytes as the caller has room for, and no more. */
#include "test.h"

#include <stdlib.h>

#define FOLDER ROOT "/Tests/Vectors/models/llama_untied"
#define LOG ROOT "/build/c/struct_sizes.lockstep"
#define OTHER_LOG ROOT "/build/c/struct_sizes_written.lockstep"

enum { TOKENS = 6, ROOM = 8192 };
static double trainer_data[TOKENS] = {-0.5, -1, -1.5, -0.25, -2, -0.125};
static double rollout_data[TOKENS] = {-0.5, -1.25, -1, -0.5, -2, -0.25};
static double reward_data[2] = {1, 0}, advantage_data[2] = {1, -1}, written[TOKENS];
static float floats[TOKENS] = {1, 2, 3, 4, 5, 6}, moments[2][TOKENS], masters_data[TOKENS];
static float logged_data[TOKENS] = {-0.5f, -1, -1.5f, -0.25f, -2, -0.125f};
static int64_t offset_data[3] = {0, 4, TOKENS}, group_data[2] = {7, 7};
static int32_t token_data[TOKENS] = {5, 9, 96, 0, 3, 3};
static uint8_t picked[TOKENS];
static const int64_t six[1] = {TOKENS}, three[1] = {3}, two[1] = {2}, matrix[2] = {2, 3};
static lockstep_tensor trainer, rollout, offsets, tokens, groups, logged, out;
static lockstep_batch batch = LOCKSTEP_BATCH_INIT;
static lockstep_model *model;
static lockstep_task *task;
static lockstep_run *run;

/* Calls that read a struct. */
static lockstep_status convert(void *s) {
    lockstep_tensor from = lockstep_tensor_of(floats, LOCKSTEP_FLOAT32, 1, six);
    return lockstep_convert(&out, NULL, &from, s);
}
static lockstep_status log_probs(void *s) {
    int32_t targets[2] = {0, 2};
    lockstep_tensor x = lockstep_tensor_of(floats, LOCKSTEP_FLOAT32, 2, matrix);
    lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, two);
    lockstep_tensor to = lockstep_tensor_of(written, LOCKSTEP_FLOAT64, 1, two);
    return lockstep_log_probs(&to, NULL, NULL, NULL, &x, &y, s);
}
static lockstep_status mismatch_options(void *s) {
    lockstep_mismatch mismatch = {.struct_size = sizeof mismatch};
    return lockstep_mismatch_measure(&mismatch, &trainer, &rollout, NULL, &offsets, s);
}
/* One of each handle: created, used where there is something to use, destroyed. */
#define CREATES(function, handle, ...) \
    static lockstep_status function(void *s) { \
        lockstep_##handle *made = NULL; \
        lockstep_status status = lockstep_##handle##_create(&made, __VA_ARGS__); \
        lockstep_##handle##_destroy(made); \
        return status; \
    }
CREATES(accumulator_options, mismatch_accumulator, s)
CREATES(monitor_options, monitor, s)
CREATES(objective_options, objective, s)
CREATES(engine_options, engine, model, s)
CREATES(localiser_options, localiser, model, model, &tokens, &offsets, s)
CREATES(scaler_options, scaler, s)
CREATES(trainer_options, trainer, FOLDER, NULL, s)
CREATES(task_options, task, "chain", s)
static lockstep_run_options small_run(void) {
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    options.prompts = 1;
    options.samples = 2;
    options.updates = 1;
    options.algorithm = "paper/grpo";
    options.threads = 1;
    return options;
}
static lockstep_environment chain(void) {
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    environment.task = task;
    return environment;
}
static lockstep_status run_options(void *s) {
    lockstep_run *made = NULL;
    lockstep_environment environment = chain();
    lockstep_status status = lockstep_run_create(&made, s, &environment);
    lockstep_run_destroy(made);
    return status;
}
static lockstep_status environment(void *s) {
    lockstep_run *made = NULL;
    lockstep_run_options options = small_run();
    lockstep_status status = lockstep_run_create(&made, &options, s);
    lockstep_run_destroy(made);
    return status;
}
CREATES(supervised_options, supervised, s)
static lockstep_status read_batch(void *s) { return lockstep_correct(&out, NULL, NULL, NULL, s, NULL); }
static lockstep_status correction_options(void *s) { return lockstep_correct(&out, NULL, NULL, NULL, &batch, s); }
static lockstep_tensor rewards_tensor, advantages_tensor;
static lockstep_rewards one_reward(void) {
    lockstep_rewards rewards = LOCKSTEP_REWARDS_INIT;
    rewards.rewards = &rewards_tensor;
    return rewards;
}
static lockstep_status rewards(void *s) {
    lockstep_tensor to = lockstep_tensor_of(written, LOCKSTEP_FLOAT64, 1, two);
    return lockstep_advantages(&to, NULL, s, &batch, NULL);
}
static lockstep_status advantage_options(void *s) {
    lockstep_tensor to = lockstep_tensor_of(written, LOCKSTEP_FLOAT64, 1, two);
    lockstep_rewards given = one_reward();
    return lockstep_advantages(&to, NULL, &given, &batch, s);
}
static lockstep_status covariance_options(void *s) {
    lockstep_tensor to = lockstep_tensor_of(picked, LOCKSTEP_UINT8, 1, six);
    return lockstep_covariance_select(&to, NULL, &batch, s);
}
static lockstep_status read_recipe(void *s) {
    size_t length;
    return lockstep_recipe_text(NULL, 0, &length, s);
}
static lockstep_status score_options(void *s) { return lockstep_model_score(&out, NULL, model, &tokens, &offsets, s); }
static lockstep_status gradient_options(void *s) {
    lockstep_gradient_norm norm;
    lockstep_tensor g = lockstep_tensor_of(floats, LOCKSTEP_FLOAT32, 1, six);
    return lockstep_gradients_measure(&norm, &g, 1, s);
}
static lockstep_status adamw_options(void *s) {
    lockstep_tensor p = lockstep_tensor_of(masters_data, LOCKSTEP_FLOAT32, 1, six), g = p;
    lockstep_tensor m = lockstep_tensor_of(moments[0], LOCKSTEP_FLOAT32, 1, six), v = m;
    v.data = moments[1];
    g.data = floats;
    return lockstep_adamw_step(&p, &m, &v, NULL, &g, s);
}
static lockstep_status schedule_options(void *s) {
    double rate;
    return lockstep_learning_rate(&rate, 1, s);
}
static lockstep_status write_log(const char *path, const void *header, const void *sequence, const void *options) {
    lockstep_log_writer *writer = NULL;
    lockstep_log_header plain_header = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_log_writer_options plain_options = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    plain_options.mode = LOCKSTEP_LOG_REPLACE;
    lockstep_status status =
        lockstep_log_writer_create(&writer, path, header ? header : &plain_header, options ? options : &plain_options);
    if (status == LOCKSTEP_OK && sequence) status = lockstep_log_writer_append(writer, sequence);
    if (status == LOCKSTEP_OK) status = lockstep_log_writer_close(writer);
    lockstep_log_writer_destroy(writer);
    return status;
}
static lockstep_status read_header(void *s) { return write_log(OTHER_LOG, s, NULL, NULL); }
static lockstep_status log_sequence(void *s) { return write_log(OTHER_LOG, NULL, s, NULL); }
static lockstep_status writer_options(void *s) { return write_log(OTHER_LOG, NULL, NULL, s); }
static lockstep_status reader_options(void *s) {
    lockstep_log_reader *reader = NULL;
    lockstep_status status = lockstep_log_reader_open(&reader, LOG, s);
    lockstep_log_reader_destroy(reader);
    return status;
}

/* Calls that write a struct. */
static lockstep_status mismatch(void *s) { return lockstep_mismatch_measure(s, &trainer, &rollout, NULL, &offsets, NULL); }
static lockstep_status evidence(void *s) {
    lockstep_mismatch_accumulator *accumulator = NULL;
    lockstep_cause_finding causes[LOCKSTEP_CAUSE_COUNT];
    CHECK_OK(lockstep_mismatch_accumulator_create(&accumulator, NULL));
    CHECK_OK(lockstep_mismatch_accumulator_update(accumulator, &trainer, &rollout, NULL, &offsets, NULL, NULL));
    lockstep_status status = lockstep_mismatch_accumulator_causes(causes, s, accumulator);
    lockstep_mismatch_accumulator_destroy(accumulator);
    return status;
}
static lockstep_status alarm_of_monitor(void *s) {
    lockstep_monitor *monitor = NULL;
    lockstep_mismatch found = {.struct_size = sizeof found};
    CHECK_OK(mismatch(&found));
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    lockstep_status status = lockstep_monitor_update(s, monitor, 0, &found);
    lockstep_monitor_destroy(monitor);
    return status;
}
enum what_of_log { HEADER, BATCH, SUMMARY };
static lockstep_status of_log(void *s, enum what_of_log what) {
    lockstep_log_reader *reader = NULL;
    CHECK_OK(lockstep_log_reader_open(&reader, LOG, NULL));
    lockstep_status status = what == HEADER ? lockstep_log_reader_header(s, reader)
        : what == BATCH ? lockstep_log_reader_next(s, reader, 100) : lockstep_log_reader_summary(s, reader);
    lockstep_log_reader_destroy(reader);
    return status;
}
static lockstep_status written_header(void *s) { return of_log(s, HEADER); }
static lockstep_status log_batch(void *s) { return of_log(s, BATCH); }
static lockstep_status log_summary(void *s) { return of_log(s, SUMMARY); }
static lockstep_status correction(void *s) { return lockstep_correct(&out, NULL, s, NULL, &batch, NULL); }
static lockstep_status objective_report(void *s) { return lockstep_objective_loss(s, &out, NULL, &batch, NULL); }
static lockstep_status preset(void *s) { return lockstep_preset_read(s, NULL, NULL, NULL, "paper/grpo"); }
static lockstep_status written_recipe(void *s) { return lockstep_recipe_named(s, "fp16"); }
static lockstep_status model_info(void *s) { return lockstep_model_get_info(s, model); }
static lockstep_status score_report(void *s) {
    return lockstep_model_score_counting(s, &out, NULL, model, &tokens, &offsets, NULL);
}
static lockstep_status difference(void *s) {
    lockstep_tensor a = lockstep_tensor_of(floats, LOCKSTEP_FLOAT32, 2, matrix);
    return lockstep_difference_measure(s, &a, &a);
}
static lockstep_status written_scaler_options(void *s) { return lockstep_scaler_options_named(s, "torch"); }
static lockstep_status scaler_report(void *s) {
    lockstep_scaler *scaler = NULL;
    CHECK_OK(lockstep_scaler_create(&scaler, NULL));
    lockstep_status status = lockstep_scaler_update(s, scaler, 1);
    lockstep_scaler_destroy(scaler);
    return status;
}
static lockstep_status backward_report(void *s) {
    lockstep_trainer *made = NULL;
    CHECK_OK(lockstep_trainer_create(&made, FOLDER, NULL, NULL));
    lockstep_status status =
        lockstep_trainer_accumulate(s, &out, NULL, made, &tokens, &offsets, &trainer, NULL, 1, 1);
    lockstep_trainer_destroy(made);
    return status;
}
static lockstep_status task_info(void *s) { return lockstep_task_get_info(s, task); }
static lockstep_status run_metrics(void *s) { return lockstep_run_step(s, run); }
static lockstep_status rollout_request(void *s) { return lockstep_run_request(s, NULL, run, 0); }
static lockstep_status supervised_metrics(void *s) {
    lockstep_supervised *made = NULL;
    lockstep_supervised_options options = LOCKSTEP_SUPERVISED_OPTIONS_INIT;
    options.task = task;
    options.batch = 1;
    options.threads = 1;
    CHECK_OK(lockstep_supervised_create(&made, &options));
    lockstep_status status = lockstep_supervised_step(s, made);
    lockstep_supervised_destroy(made);
    return status;
}

/* A struct of the caller, on memory that begins with it and is longer. */
typedef union {
    uint32_t struct_size;
    double aligned;
    unsigned char bytes[ROOM];
} memory;

typedef struct {
    const char *name;
    size_t size, first; /* today's, and that of the version it came in */
    lockstep_status (*call)(void *);
    const void *sample; /* what is read; NULL: it is written */
} row;

static void refused(const row *r, const memory *m, const char *word) {
    lockstep_status status = r->call((void *)m);
    if (status != LOCKSTEP_ERROR_INVALID_ARGUMENT || strstr(lockstep_last_error(), word) == NULL)
        test_fail(__FILE__, __LINE__, "%s of %u bytes: %s: %s", r->name, m->struct_size, lockstep_status_name(status),
                  lockstep_last_error());
}
static void accepted(const row *r, memory *m) {
    const uint32_t size = m->struct_size;
    lockstep_status status = r->call(m);
    if (status != LOCKSTEP_OK)
        test_fail(__FILE__, __LINE__, "%s of %u bytes: %s: %s", r->name, size, lockstep_status_name(status),
                  lockstep_last_error());
}

static void reads(const row *r) {
    const uint32_t known[] = {(uint32_t)r->first, (uint32_t)r->size, (uint32_t)r->size + 16};
    const uint32_t bad[] = {0, 3, (uint32_t)r->first - 1, 4097, UINT32_MAX};
    memory m;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        /* What follows a short struct is not the library's to read. */
        memset(m.bytes, TEST_CANARY, sizeof m.bytes);
        memset(m.bytes, 0, known[i]);
        memcpy(m.bytes, r->sample, known[i] < r->size ? known[i] : r->size);
        m.struct_size = known[i];
        accepted(r, &m);
    }
    m.bytes[r->size + 15] = 1;
    refused(r, &m, "offset");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(m.bytes, 0, sizeof m.bytes);
        memcpy(m.bytes, r->sample, r->size);
        m.struct_size = bad[i];
        refused(r, &m, "struct_size");
    }
}

static void writes(const row *r) {
    const uint32_t known[] = {(uint32_t)r->first, (uint32_t)r->size, (uint32_t)r->size + 64};
    const uint32_t bad[] = {0, 3, (uint32_t)r->first - 1, UINT32_MAX};
    memory m;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const size_t end = known[i] < r->size ? known[i] : r->size;
        memset(m.bytes, TEST_CANARY, sizeof m.bytes);
        m.struct_size = known[i];
        accepted(r, &m);
        CHECK(m.struct_size == known[i]);
        if (!test_is_canary(m.bytes + end, ROOM - end))
            test_fail(__FILE__, __LINE__, "%s of %u bytes: written behind its end", r->name, known[i]);
        if (test_is_canary(m.bytes + 4, end - 4))
            test_fail(__FILE__, __LINE__, "%s of %u bytes: nothing was written", r->name, known[i]);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        memset(m.bytes, TEST_CANARY, sizeof m.bytes);
        m.struct_size = bad[i];
        refused(r, &m, "struct_size");
        CHECK(test_is_canary(m.bytes + 4, ROOM - 4));
    }
}

static void every_size(void) {
    lockstep_convert_options s1 = LOCKSTEP_CONVERT_OPTIONS_INIT;
    lockstep_log_probs_options s2 = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    lockstep_mismatch_options s3 = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    lockstep_mismatch_accumulator_options s4 = LOCKSTEP_MISMATCH_ACCUMULATOR_OPTIONS_INIT;
    lockstep_monitor_options s5 = LOCKSTEP_MONITOR_OPTIONS_INIT;
    lockstep_log_header s6 = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_log_sequence s7 = LOCKSTEP_LOG_SEQUENCE_INIT;
    lockstep_log_writer_options s8 = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    lockstep_log_reader_options s9 = LOCKSTEP_LOG_READER_OPTIONS_INIT;
    lockstep_correction_options s10 = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_rewards s11 = one_reward();
    lockstep_advantage_options s12 = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    lockstep_objective_options s13 = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    lockstep_covariance_options s14 = LOCKSTEP_COVARIANCE_OPTIONS_INIT;
    lockstep_recipe s15 = {.struct_size = sizeof s15};
    lockstep_score_options s16 = LOCKSTEP_SCORE_OPTIONS_INIT;
    lockstep_engine_options s17 = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_localiser_options s18 = LOCKSTEP_LOCALISER_OPTIONS_INIT;
    lockstep_scaler_options s19 = {.struct_size = sizeof s19};
    lockstep_gradient_options s20 = LOCKSTEP_GRADIENT_OPTIONS_INIT;
    lockstep_adamw_options s21 = LOCKSTEP_ADAMW_OPTIONS_INIT;
    lockstep_schedule_options s22 = LOCKSTEP_SCHEDULE_OPTIONS_INIT;
    lockstep_trainer_options s23 = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_task_options s24 = LOCKSTEP_TASK_OPTIONS_INIT;
    lockstep_environment s25 = chain();
    lockstep_run_options s26 = small_run();
    lockstep_supervised_options s27 = LOCKSTEP_SUPERVISED_OPTIONS_INIT;
    s7.trainer_log_probs = s7.rollout_log_probs = &logged;
    s8.mode = LOCKSTEP_LOG_REPLACE;
    s27.task = task;
    CHECK_OK(lockstep_recipe_named(&s15, "fp32"));
    CHECK_OK(lockstep_scaler_options_named(&s19, "torch"));
    CHECK_OK(write_log(LOG, NULL, &s7, NULL));

#define READ(struct_name, first, call, sample) {#struct_name, sizeof(lockstep_##struct_name), first, call, sample}
#define WRITTEN(struct_name, first, call) {#struct_name, sizeof(lockstep_##struct_name), first, call, NULL}
    const row rows[] = {
        READ(convert_options, 32, convert, &s1),
        READ(log_probs_options, 48, log_probs, &s2),
        READ(mismatch_options, 16, mismatch_options, &s3),
        READ(mismatch_accumulator_options, 8, accumulator_options, &s4),
        READ(monitor_options, 16, monitor_options, &s5),
        READ(log_header, 176, read_header, &s6),
        READ(log_sequence, 80, log_sequence, &s7),
        READ(log_writer_options, 16, writer_options, &s8),
        READ(log_reader_options, 8, reader_options, &s9),
        READ(batch, sizeof batch, read_batch, &batch),
        READ(correction_options, sizeof s10, correction_options, &s10),
        READ(rewards, sizeof s11, rewards, &s11),
        READ(advantage_options, sizeof s12, advantage_options, &s12),
        READ(objective_options, sizeof s13, objective_options, &s13),
        READ(covariance_options, sizeof s14, covariance_options, &s14),
        READ(recipe, 24, read_recipe, &s15),
        READ(score_options, sizeof s16, score_options, &s16),
        READ(engine_options, sizeof s17, engine_options, &s17),
        READ(localiser_options, sizeof s18, localiser_options, &s18),
        READ(scaler_options, sizeof s19, scaler_options, &s19),
        READ(gradient_options, sizeof s20, gradient_options, &s20),
        READ(adamw_options, sizeof s21, adamw_options, &s21),
        READ(schedule_options, sizeof s22, schedule_options, &s22),
        READ(trainer_options, sizeof s23, trainer_options, &s23),
        READ(task_options, sizeof s24, task_options, &s24),
        READ(environment, sizeof s25, environment, &s25),
        READ(run_options, sizeof s26, run_options, &s26),
        READ(supervised_options, sizeof s27, supervised_options, &s27),
        WRITTEN(mismatch, offsetof(lockstep_mismatch, ess_standard_error), mismatch),
        WRITTEN(mismatch_evidence, 360, evidence),
        WRITTEN(monitor_alarm, 80, alarm_of_monitor),
        WRITTEN(log_header, 176, written_header),
        WRITTEN(log_batch, 600, log_batch),
        WRITTEN(log_summary, 64, log_summary),
        WRITTEN(correction, sizeof(lockstep_correction), correction),
        WRITTEN(objective_report, sizeof(lockstep_objective_report), objective_report),
        WRITTEN(preset, sizeof(lockstep_preset), preset),
        WRITTEN(recipe, 24, written_recipe),
        WRITTEN(model_info, sizeof(lockstep_model_info), model_info),
        WRITTEN(score_report, sizeof(lockstep_score_report), score_report),
        WRITTEN(difference, sizeof(lockstep_difference), difference),
        WRITTEN(scaler_options, sizeof s19, written_scaler_options),
        WRITTEN(scaler_report, sizeof(lockstep_scaler_report), scaler_report),
        WRITTEN(backward_report, sizeof(lockstep_backward_report), backward_report),
        WRITTEN(task_info, sizeof(lockstep_task_info), task_info),
        WRITTEN(run_metrics, sizeof(lockstep_run_metrics), run_metrics),
        WRITTEN(rollout_request, sizeof(lockstep_rollout_request), rollout_request),
        WRITTEN(supervised_metrics, sizeof(lockstep_supervised_metrics), supervised_metrics),
    };
    enum { ROWS = sizeof rows / sizeof *rows };
    for (int i = 0; i < ROWS; i++)
        if (rows[i].sample) reads(&rows[i]); else writes(&rows[i]);

    /* Every struct that may grow has a row. */
#define LAYOUT_SIZE(type, size)
#define LAYOUT_FIELD(type, member, offset, size)
#define LAYOUT_CONSTANT(name, value)
#define LAYOUT_GROWS(type, size) #type,
    static const char *const growing[] = {
#include "abi/layout.h"
    };
    for (size_t g = 0; g < sizeof growing / sizeof *growing; g++) {
        int found = 0;
        for (int i = 0; i < ROWS; i++) found += strcmp(rows[i].name, growing[g] + strlen("lockstep_")) == 0;
        if (found == 0) test_fail(__FILE__, __LINE__, "%s has no row", growing[g]);
    }
}

int main(void) {
    lockstep_task_options size = LOCKSTEP_TASK_OPTIONS_INIT;
    trainer = lockstep_tensor_of(trainer_data, LOCKSTEP_FLOAT64, 1, six);
    rollout = lockstep_tensor_of(rollout_data, LOCKSTEP_FLOAT64, 1, six);
    offsets = lockstep_tensor_of(offset_data, LOCKSTEP_INT64, 1, three);
    tokens = lockstep_tensor_of(token_data, LOCKSTEP_INT32, 1, six);
    groups = lockstep_tensor_of(group_data, LOCKSTEP_INT64, 1, two);
    logged = lockstep_tensor_of(logged_data, LOCKSTEP_FLOAT32, 1, six);
    out = lockstep_tensor_of(written, LOCKSTEP_FLOAT64, 1, six);
    rewards_tensor = lockstep_tensor_of(reward_data, LOCKSTEP_FLOAT64, 1, two);
    advantages_tensor = lockstep_tensor_of(advantage_data, LOCKSTEP_FLOAT64, 1, two);
    batch.trainer_log_probs = batch.current_log_probs = &trainer;
    batch.rollout_log_probs = &rollout;
    batch.advantages = &advantages_tensor;
    batch.offsets = &offsets;
    batch.groups = &groups;
    size.size = 3;
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, NULL));
    CHECK_OK(lockstep_task_create(&task, "chain", &size));
    lockstep_run_options options = small_run();
    lockstep_environment problems = chain();
    CHECK_OK(lockstep_run_create(&run, &options, &problems));
    TEST(every_size);
    lockstep_run_destroy(run);
    lockstep_task_destroy(task);
    lockstep_model_destroy(model);
    return test_report();
}

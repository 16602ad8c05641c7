/* Eight threads at once: on one handle, where the header says `const`, and on handles of their own. Every result has the
 * bits that one thread alone gets. */
#include "arguments.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define FOLDER ROOT "/Tests/Vectors/models/llama_untied"

enum { THREADS = 8, ROUNDS = 3, TOKENS = 600, SEQUENCES = 60, ROWS = 12, VOCAB = 700, WIDTH = 24, ROOM = 1 << 17 };

static float pi_data[TOKENS], mu_data[TOKENS], hidden[ROWS * WIDTH], weight[VOCAB * WIDTH];
static int32_t tokens[TOKENS], targets[ROWS];
static int64_t offsets[SEQUENCES + 1];
static uint64_t numbers[SEQUENCES];
static double d_log_probs[TOKENS];
static argument pi, mu, of_hidden, of_weight, of_targets, of_tokens, of_offsets, of_numbers, of_gradients;

/* Handles that all threads use. */
static lockstep_head *head;
static lockstep_model *model, *other;
static lockstep_mismatch_accumulator *accumulator;
static lockstep_monitor *monitor;
static lockstep_scaler *scaler;
static lockstep_objective *objective;
static lockstep_task *task;
static lockstep_localiser *localiser;
static lockstep_audit *audit;
static lockstep_trainer *trainer;
static lockstep_log_reader *reader;
static char folder[] = "/tmp/lockstep-threads-XXXXXX";

static void make_inputs(void) {
    uint32_t random = 11;
    for (int i = 0; i < TOKENS; i++) {
        random = random * 1664525u + 1013904223u;
        pi_data[i] = -1 - (float)(random >> 8) * 0x1p-24f;
        mu_data[i] = pi_data[i] + ((float)(random & 255) - 128) * 0x1p-12f;
        tokens[i] = (int32_t)(random >> 16) % 90;
        d_log_probs[i] = (double)(random & 7) - 3;
    }
    for (int i = 0; i <= SEQUENCES; i++) offsets[i] = i * TOKENS / SEQUENCES;
    for (int i = 0; i < SEQUENCES; i++) numbers[i] = (uint64_t)i * 5;
    for (int i = 0; i < ROWS * WIDTH; i++) hidden[i] = (float)(i * 29 % 31) * 0.0625f;
    for (int i = 0; i < VOCAB * WIDTH; i++) weight[i] = (float)(i * 23 % 53) * 0.03125f;
    for (int i = 0; i < ROWS; i++) targets[i] = i * 71 % VOCAB;
    argument_init(&pi, pi_data, LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&mu, mu_data, LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&of_hidden, hidden, LOCKSTEP_FLOAT32, ROWS, WIDTH);
    argument_init(&of_weight, weight, LOCKSTEP_FLOAT32, VOCAB, WIDTH);
    argument_init(&of_targets, targets, LOCKSTEP_INT32, ROWS, 0);
    argument_init(&of_tokens, tokens, LOCKSTEP_INT32, TOKENS, 0);
    argument_init(&of_offsets, offsets, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&of_numbers, numbers, LOCKSTEP_UINT64, SEQUENCES, 0);
    argument_init(&of_gradients, d_log_probs, LOCKSTEP_FLOAT64, TOKENS, 0);
}

static const lockstep_tensor *output(argument *a, void *results, int32_t dtype, int64_t rows) {
    argument_init(a, results, dtype, rows, 0);
    return &a->tensor;
}

/* A job fills `out`, which is zeros; `who` is 0 ... 7, and a result may depend on it. It returns 0 if a call failed. */
typedef int (*job)(int who, unsigned char *out);

/* --- One handle, `const` --- */

static int one_head(int who, unsigned char *out) {
    argument a;
    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    options.threads = 1 + who % 3;
    return lockstep_head_log_probs(output(&a, out, LOCKSTEP_FLOAT32, ROWS), NULL, NULL, head, &of_hidden.tensor,
                                   &of_targets.tensor, &options) == LOCKSTEP_OK;
}

static int one_model(int who, unsigned char *out) {
    argument a, b;
    lockstep_score_options options = LOCKSTEP_SCORE_OPTIONS_INIT;
    lockstep_model_info info;
    options.threads = 1 + who % 3;
    info.struct_size = sizeof info;
    if (lockstep_model_get_info(&info, model) != LOCKSTEP_OK) return 0;
    memcpy(out, &info.parameters, sizeof info.parameters);
    return lockstep_model_score(output(&a, out + 1024, LOCKSTEP_FLOAT64, TOKENS),
                                output(&b, out + ROOM / 2, LOCKSTEP_FLOAT64, TOKENS), model, &of_tokens.tensor,
                                &of_offsets.tensor, &options) == LOCKSTEP_OK;
}

/* An engine of a thread's own, of the model that all share. */
static int one_model_sampled(int who, unsigned char *out) {
    lockstep_engine_options options = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_engine *engine = NULL;
    lockstep_rollout rollout;
    argument prompt;
    size_t running = 1;
    const uint64_t id[2] = {(uint64_t)who, (uint64_t)who + 100};
    int ok;
    options.max_tokens = 12;
    options.threads = 1 + who % 2;
    argument_init(&prompt, tokens, LOCKSTEP_INT32, 3 + who, 0);
    ok = lockstep_engine_create(&engine, model, &options) == LOCKSTEP_OK
         && lockstep_engine_add(engine, &prompt.tensor, id, 2) == LOCKSTEP_OK;
    while (ok && running > 0) ok = lockstep_engine_step(engine, &running, NULL) == LOCKSTEP_OK;
    for (int place = 0; ok && place < 2; place++) {
        ok = lockstep_engine_take(&rollout, engine, 0) == LOCKSTEP_OK && rollout.token_count > 0;
        if (!ok) break;
        memcpy(out + 1024 * place, rollout.tokens, sizeof(int32_t) * (size_t)rollout.token_count);
        memcpy(out + 1024 * place + 512, rollout.raw_log_probs, sizeof(double) * (size_t)rollout.token_count);
    }
    lockstep_engine_destroy(engine);
    return ok;
}

static int one_accumulator(int who, unsigned char *out) {
    lockstep_mismatch *mismatch = (void *)out;
    lockstep_mismatch_bucket buckets[64];
    lockstep_mismatch_token worst[32];
    size_t count = 64, most = 32, size = ROOM - 16384;
    (void)who;
    mismatch->struct_size = sizeof *mismatch;
    if (lockstep_mismatch_accumulator_report(mismatch, accumulator) != LOCKSTEP_OK
        || lockstep_mismatch_accumulator_profile(buckets, &count, accumulator, LOCKSTEP_AXIS_POSITION) != LOCKSTEP_OK
        || lockstep_mismatch_accumulator_worst(worst, &most, accumulator) != LOCKSTEP_OK
        || lockstep_mismatch_accumulator_causes((void *)(out + 4096), NULL, accumulator) != LOCKSTEP_OK
        || lockstep_mismatch_accumulator_save(out + 16384, &size, accumulator) != LOCKSTEP_OK)
        return 0;
    memcpy(out + 8192, buckets, sizeof buckets[0] * count);
    memcpy(out + 12288, worst, sizeof worst[0] * most);
    return 1;
}

static int one_monitor(int who, unsigned char *out) {
    size_t size = ROOM - 4096;
    return lockstep_monitor_read((void *)out, monitor, who % 4) == LOCKSTEP_OK
           && lockstep_monitor_save(out + 4096, &size, monitor) == LOCKSTEP_OK;
}

static int one_scaler(int who, unsigned char *out) {
    lockstep_scaler_report *report = (void *)out;
    lockstep_scaler_options *options = (void *)(out + 1024);
    size_t size = 4096;
    (void)who;
    report->struct_size = sizeof *report;
    options->struct_size = sizeof *options;
    return lockstep_scaler_read(report, scaler) == LOCKSTEP_OK
           && lockstep_scaler_get_options(options, scaler) == LOCKSTEP_OK
           && lockstep_scaler_save(out + 2048, &size, scaler) == LOCKSTEP_OK;
}

static int one_objective(int who, unsigned char *out) {
    lockstep_objective_report *report = (void *)(out + 1024);
    (void)who;
    report->struct_size = sizeof *report;
    return lockstep_objective_counted((void *)out, objective) == LOCKSTEP_OK
           && lockstep_objective_read(report, objective) == LOCKSTEP_OK;
}

static int one_task(int who, unsigned char *out) {
    int32_t *prompt = (void *)out, *response = (void *)(out + 2048);
    size_t prompt_count = 512, response_count = 512, size = 2048;
    argument asked, answered;
    if (lockstep_task_prompt(prompt, &prompt_count, task, who, 3) != LOCKSTEP_OK
        || lockstep_task_demonstration(response, &response_count, task, who, 3, 0) != LOCKSTEP_OK)
        return 0;
    argument_init(&asked, prompt, LOCKSTEP_INT32, (int64_t)prompt_count, 0);
    argument_init(&answered, response, LOCKSTEP_INT32, (int64_t)response_count, 0);
    return lockstep_task_reward((void *)(out + 4096), task, &asked.tensor, &answered.tensor) == LOCKSTEP_OK
           && lockstep_task_decode((void *)(out + 8192), &size, task, &answered.tensor) == LOCKSTEP_OK;
}

static int one_localiser(int who, unsigned char *out) {
    argument a, b;
    lockstep_difference row;
    size_t count = 0;
    row.struct_size = sizeof row;
    if (lockstep_localiser_read(&row, &count, localiser, (size_t)who) != LOCKSTEP_OK) return 0;
    memcpy(out, &row.max_abs, sizeof row.max_abs);
    return lockstep_localiser_log_probs(output(&a, out + 1024, LOCKSTEP_FLOAT64, TOKENS),
                                        output(&b, out + ROOM / 2, LOCKSTEP_FLOAT64, TOKENS), localiser,
                                        who % 2 ? LOCKSTEP_SWAP_NONE : LOCKSTEP_SWAP_FP32_HEADS) == LOCKSTEP_OK;
}

static int one_audit(int who, unsigned char *out) {
    lockstep_headroom row;
    size_t count = 0;
    if (lockstep_audit_read(&row, &count, audit, (size_t)who) != LOCKSTEP_OK) return 0;
    memcpy(out, &row.largest, sizeof row.largest);
    strcpy((char *)out + 64, row.name);
    return 1;
}

static int one_trainer(int who, unsigned char *out) {
    lockstep_parameter parameter;
    size_t count = 0;
    if (lockstep_trainer_parameter(&parameter, &count, NULL, trainer, (size_t)who) != LOCKSTEP_OK) return 0;
    strcpy((char *)out, parameter.name);
    memcpy(out + 256, parameter.shape, sizeof parameter.shape);
    return 1;
}

static int one_reader(int who, unsigned char *out) {
    lockstep_log_header header;
    lockstep_log_summary *summary = (void *)out;
    (void)who;
    header.struct_size = sizeof header;
    summary->struct_size = sizeof *summary;
    if (lockstep_log_reader_header(&header, reader) != LOCKSTEP_OK
        || lockstep_log_reader_summary(summary, reader) != LOCKSTEP_OK)
        return 0;
    strcpy((char *)out + 1024, header.model);
    strcpy((char *)out + 2048, header.trainer_engine);
    return 1;
}

/* --- Handles of a thread's own --- */

static int own_accumulator(int who, unsigned char *out) {
    lockstep_mismatch_options options = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    lockstep_mismatch_accumulator *used = NULL, *loaded = NULL;
    size_t size = ROOM;
    int ok;
    options.threads = 1 + who % 3;
    ok = lockstep_mismatch_accumulator_create(&used, NULL) == LOCKSTEP_OK;
    for (int i = 0; ok && i <= who; i++)
        ok = lockstep_mismatch_accumulator_update(used, &pi.tensor, &mu.tensor, NULL, &of_offsets.tensor, &of_numbers.tensor,
                                                  &options) == LOCKSTEP_OK;
    ok = ok && lockstep_mismatch_accumulator_merge(used, accumulator) == LOCKSTEP_OK
         && lockstep_mismatch_accumulator_save(out, &size, used) == LOCKSTEP_OK
         && lockstep_mismatch_accumulator_load(&loaded, out, size) == LOCKSTEP_OK;
    lockstep_mismatch_accumulator_destroy(used);
    lockstep_mismatch_accumulator_destroy(loaded);
    return ok;
}

static int own_monitor(int who, unsigned char *out) {
    lockstep_monitor_options options = LOCKSTEP_MONITOR_OPTIONS_INIT;
    lockstep_monitor *used = NULL;
    lockstep_mismatch mismatch;
    lockstep_monitor_alarm alarm;
    size_t size = ROOM;
    int ok;
    options.learning_steps = 20;
    mismatch.struct_size = sizeof mismatch;
    alarm.struct_size = sizeof alarm;
    ok = lockstep_mismatch_accumulator_report(&mismatch, accumulator) == LOCKSTEP_OK
         && lockstep_monitor_create(&used, &options) == LOCKSTEP_OK;
    for (int step = 0; ok && step < 60; step++) {
        mismatch.k3.value *= 1 + 0.01 * (who + 1);
        ok = lockstep_monitor_update(&alarm, used, step, &mismatch) == LOCKSTEP_OK;
    }
    ok = ok && lockstep_monitor_save(out, &size, used) == LOCKSTEP_OK;
    lockstep_monitor_destroy(used);
    return ok;
}

static int own_scaler(int who, unsigned char *out) {
    lockstep_scaler *used = NULL;
    lockstep_scaler_report report;
    size_t size = ROOM;
    int ok = lockstep_scaler_create(&used, NULL) == LOCKSTEP_OK;
    report.struct_size = sizeof report;
    for (int step = 0; ok && step < 200; step++)
        ok = lockstep_scaler_update(&report, used, step % (5 + who) == 0) == LOCKSTEP_OK;
    ok = ok && lockstep_scaler_save(out, &size, used) == LOCKSTEP_OK;
    lockstep_scaler_destroy(used);
    return ok;
}

static int own_writer(int who, unsigned char *out) {
    char path[128];
    lockstep_log_writer *used = NULL;
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    FILE *file;
    int ok;
    snprintf(path, sizeof path, "%s/%d-%p.lockstep", folder, who, (void *)out);
    sequence.trainer_log_probs = &pi.tensor;
    sequence.rollout_log_probs = &mu.tensor;
    ok = lockstep_log_writer_create(&used, path, NULL, NULL) == LOCKSTEP_OK;
    for (int i = 0; ok && i < 8; i++) {
        sequence.id = (uint64_t)(who * 10 + i);
        ok = lockstep_log_writer_append(used, &sequence) == LOCKSTEP_OK;
    }
    ok = ok && lockstep_log_writer_close(used) == LOCKSTEP_OK;
    lockstep_log_writer_destroy(used);
    file = fopen(path, "rb");
    ok = ok && file != NULL && fread(out, 1, ROOM, file) > 1000;
    if (file != NULL) fclose(file);
    unlink(path);
    return ok;
}

static int own_trainer(int who, unsigned char *out) {
    lockstep_recipe recipe = {sizeof(lockstep_recipe), 0, 0, 0, 0, 0, 0, 0};
    lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_trainer *used = NULL;
    argument a;
    float *sums;
    size_t elements = 0;
    int ok;
    options.threads = 1 + who % 2;
    ok = lockstep_recipe_named(&recipe, who % 2 ? "fp16" : "bf16") == LOCKSTEP_OK
         && lockstep_trainer_create(&used, FOLDER, &recipe, &options) == LOCKSTEP_OK
         && lockstep_trainer_accumulate(NULL, NULL, NULL, used, &of_tokens.tensor, &of_offsets.tensor, &of_gradients.tensor,
                                        NULL, 1024, 1) == LOCKSTEP_OK
         && lockstep_trainer_parameter(NULL, NULL, &elements, used, 0) == LOCKSTEP_OK;
    if (!ok) return 0;
    sums = malloc(sizeof(float) * elements);
    ok = lockstep_trainer_gradients(output(&a, sums, LOCKSTEP_FLOAT32, (int64_t)elements), used) == LOCKSTEP_OK;
    memcpy(out, sums, ROOM < sizeof(float) * elements ? ROOM : sizeof(float) * elements);
    free(sums);
    lockstep_trainer_destroy(used);
    return ok;
}

static int own_run(int who, unsigned char *out) {
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run_metrics *metrics = (void *)out;
    const lockstep_run_metrics empty = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_run *run = NULL;
    int ok;
    options.prompts = 2;
    options.samples = 3;
    options.model_seed = (uint64_t)who;
    options.threads = 1 + who % 3;
    environment.task = task;
    *metrics = empty;
    ok = lockstep_run_create(&run, &options, &environment) == LOCKSTEP_OK;
    for (int step = 0; ok && step < 2; step++) ok = lockstep_run_step(metrics, run) == LOCKSTEP_OK;
    lockstep_run_destroy(run);
    return ok;
}

static const struct {
    const char *name;
    job job;
} jobs[] = {
    {"head", one_head},
    {"model, scored", one_model},
    {"model, sampled", one_model_sampled},
    {"accumulator", one_accumulator},
    {"monitor", one_monitor},
    {"scaler", one_scaler},
    {"objective", one_objective},
    {"task", one_task},
    {"localiser", one_localiser},
    {"audit", one_audit},
    {"trainer", one_trainer},
    {"log reader", one_reader},
    {"accumulators", own_accumulator},
    {"monitors", own_monitor},
    {"scalers", own_scaler},
    {"log writers", own_writer},
    {"trainers", own_trainer},
    {"runs", own_run},
};
enum { JOBS = sizeof jobs / sizeof *jobs };

static unsigned char *expected[JOBS][THREADS];
static pthread_barrier_t together;

/* Does all jobs, each thread from another one on, then each by all at the same time. */
static void *hammer(void *argument) {
    const int who = (int)(intptr_t)argument;
    intptr_t wrong = 0;
    unsigned char *out = malloc(ROOM);
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < JOBS; i++) {
            const int place = round == 0 ? i : (i + who * 2 + round) % JOBS;
            if (round == 0) pthread_barrier_wait(&together);
            memset(out, 0, ROOM);
            if (!jobs[place].job(who, out) || memcmp(out, expected[place][who], ROOM) != 0) {
                printf("    thread %d, %s: other bits, or %s\n", who, jobs[place].name, lockstep_last_error());
                wrong++;
            }
        }
    free(out);
    return (void *)wrong;
}

static void eight_threads_have_the_bits_of_one(void) {
    pthread_t threads[THREADS];
    for (int i = 0; i < JOBS; i++)
        for (int who = 0; who < THREADS; who++) {
            expected[i][who] = calloc(1, ROOM);
            if (!jobs[i].job(who, expected[i][who]))
                test_fail(__FILE__, __LINE__, "%s: %s", jobs[i].name, lockstep_last_error());
        }
    if (test_failed_checks) return;
    pthread_barrier_init(&together, NULL, THREADS);
    for (intptr_t who = 0; who < THREADS; who++) CHECK(pthread_create(&threads[who], NULL, hammer, (void *)who) == 0);
    for (int who = 0; who < THREADS; who++) {
        void *wrong = NULL;
        CHECK(pthread_join(threads[who], &wrong) == 0);
        CHECK(wrong == NULL);
    }
    printf("    %d results on %d handles compared\n", THREADS * ROUNDS * JOBS, JOBS);
    for (int i = 0; i < JOBS; i++)
        for (int who = 0; who < THREADS; who++) free(expected[i][who]);
}

/* Any number of readers beside one writer. */
enum { RECORDS = 200 };
static char followed[128];

static void *follow(void *unused) {
    lockstep_log_reader *used = NULL;
    lockstep_log_batch batch;
    intptr_t next = 0, wrong = 0;
    (void)unused;
    batch.struct_size = sizeof batch;
    if (lockstep_log_reader_open(&used, followed, NULL) != LOCKSTEP_OK) return (void *)1;
    while (next < RECORDS && !wrong) {
        if (lockstep_log_reader_next(&batch, used, 2000) != LOCKSTEP_OK) wrong++;
        else if (batch.sequences == 0) usleep(200);
        else
            for (int64_t i = 0; i < batch.sequences; i++) {
                const int64_t start = ((const int64_t *)batch.offsets.data)[i];
                if (((const uint64_t *)batch.ids.data)[i] != (uint64_t)next++
                    || memcmp((const float *)batch.trainer_log_probs.data + start, pi_data, sizeof pi_data) != 0)
                    wrong++;
            }
    }
    lockstep_log_reader_destroy(used);
    return (void *)wrong;
}

static void readers_beside_a_writer(void) {
    pthread_t threads[THREADS - 1];
    lockstep_log_writer *used = NULL;
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    snprintf(followed, sizeof followed, "%s/followed.lockstep", folder);
    sequence.trainer_log_probs = &pi.tensor;
    CHECK_OK(lockstep_log_writer_create(&used, followed, NULL, NULL));
    for (int i = 0; i < THREADS - 1; i++) CHECK(pthread_create(&threads[i], NULL, follow, NULL) == 0);
    for (sequence.id = 0; sequence.id < RECORDS; sequence.id++) CHECK_OK(lockstep_log_writer_append(used, &sequence));
    for (int i = 0; i < THREADS - 1; i++) {
        void *wrong = NULL;
        CHECK(pthread_join(threads[i], &wrong) == 0);
        CHECK(wrong == NULL);
    }
    lockstep_log_writer_destroy(used);
    CHECK(unlink(followed) == 0);
}

static int asks;

static void *ask(void *unused) {
    lockstep_difference row;
    row.struct_size = sizeof row;
    while (__atomic_load_n(&asks, __ATOMIC_RELAXED)) lockstep_localiser_read(&row, NULL, localiser, 3);
    return unused;
}

/* A fork while threads read names from a shared handle: the child reads them too. */
static void a_handle_of_many_threads_survives_a_fork(void) {
    enum { ASKING = 3, FORKS = 150 };
    pthread_t threads[ASKING];
    int ended = 0;
    asks = 1;
    for (int i = 0; i < ASKING; i++) CHECK(pthread_create(&threads[i], NULL, ask, NULL) == 0);
    fflush(stdout);
    for (int i = 0; i < FORKS && ended == i; i++) {
        pid_t child = fork();
        int status = 1;
        if (child == 0) {
            lockstep_difference row;
            row.struct_size = sizeof row;
            alarm(20); /* a child that hangs is killed, and seen below */
            _exit(lockstep_localiser_read(&row, NULL, localiser, 3) == LOCKSTEP_OK ? 0 : 1);
        }
        if (child > 0 && waitpid(child, &status, 0) == child && status == 0) ended++;
    }
    CHECK(ended == FORKS);
    __atomic_store_n(&asks, 0, __ATOMIC_RELAXED);
    for (int i = 0; i < ASKING; i++) CHECK(pthread_join(threads[i], NULL) == 0);
}

int main(void) {
    lockstep_mismatch_options how = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    lockstep_localiser_options locate = LOCKSTEP_LOCALISER_OPTIONS_INIT;
    lockstep_trainer_options training = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_objective_options loss = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    lockstep_task_options size = LOCKSTEP_TASK_OPTIONS_INIT;
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_recipe fp16 = {sizeof(lockstep_recipe), 0, 0, 0, 0, 0, 0, 0}, bf16 = fp16;
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    lockstep_mismatch mismatch;
    lockstep_monitor_alarm alarm;
    lockstep_scaler_report report;
    lockstep_log_writer *written = NULL;
    char path[128];
    size_t done = 0, total = 1;
    make_inputs();
    if (mkdtemp(folder) == NULL) return 1;
    mismatch.struct_size = sizeof mismatch;
    alarm.struct_size = sizeof alarm;
    report.struct_size = sizeof report;
    size.size = 5;
    header.model = "a model";
    header.trainer_engine = "an engine";
    snprintf(path, sizeof path, "%s/one.lockstep", folder);
    CHECK_OK(lockstep_recipe_named(&fp16, "fp16"));
    CHECK_OK(lockstep_recipe_named(&bf16, "bf16"));
    CHECK_OK(lockstep_head_create(&head, &of_weight.tensor, NULL));
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, &fp16));
    CHECK_OK(lockstep_model_load(&other, FOLDER, NULL, &bf16));
    CHECK_OK(lockstep_mismatch_accumulator_create(&accumulator, NULL));
    CHECK_OK(lockstep_mismatch_accumulator_update(accumulator, &pi.tensor, &mu.tensor, NULL, &of_offsets.tensor,
                                                  &of_numbers.tensor, &how));
    CHECK_OK(lockstep_mismatch_accumulator_report(&mismatch, accumulator));
    CHECK_OK(lockstep_monitor_create(&monitor, NULL));
    CHECK_OK(lockstep_monitor_update(&alarm, monitor, 1, &mismatch));
    CHECK_OK(lockstep_scaler_create(&scaler, NULL));
    CHECK_OK(lockstep_scaler_update(&report, scaler, 1));
    batch.current_log_probs = batch.trainer_log_probs = &pi.tensor;
    batch.advantages = &mu.tensor;
    batch.offsets = &of_offsets.tensor;
    CHECK_OK(lockstep_objective_create(&objective, &loss));
    CHECK_OK(lockstep_objective_count(objective, &batch));
    CHECK_OK(lockstep_objective_evaluate(objective, NULL, NULL, &batch));
    CHECK_OK(lockstep_task_create(&task, "chain", &size));
    CHECK_OK(lockstep_localiser_create(&localiser, model, other, &of_tokens.tensor, &of_offsets.tensor, &locate));
    while (done < total) CHECK_OK(lockstep_localiser_step(localiser, &done, &total));
    CHECK_OK(lockstep_audit_create(&audit, FOLDER, NULL, NULL, NULL));
    CHECK_OK(lockstep_trainer_create(&trainer, FOLDER, &fp16, &training));
    CHECK_OK(lockstep_log_writer_create(&written, path, &header, NULL));
    lockstep_log_writer_destroy(written);
    CHECK_OK(lockstep_log_reader_open(&reader, path, NULL));
    TEST(eight_threads_have_the_bits_of_one);
    TEST(readers_beside_a_writer);
    TEST_OF_FORKS(a_handle_of_many_threads_survives_a_fork);
    lockstep_log_reader_destroy(reader);
    lockstep_trainer_destroy(trainer);
    lockstep_audit_destroy(audit);
    lockstep_localiser_destroy(localiser);
    lockstep_task_destroy(task);
    lockstep_objective_destroy(objective);
    lockstep_scaler_destroy(scaler);
    lockstep_monitor_destroy(monitor);
    lockstep_mismatch_accumulator_destroy(accumulator);
    lockstep_model_destroy(model);
    lockstep_model_destroy(other);
    lockstep_head_destroy(head);
    CHECK(unlink(path) == 0 && rmdir(folder) == 0);
    return test_report();
}

/* Out of memory, as in out_of_memory_test.c, in what has a model or a file: engines, training, runs, tasks and logs. */
#include "arguments.h"
#include "memory_faults.h"

#include <sys/stat.h>

#define FOLDER ROOT "/Tests/Vectors/models/"

enum { TOKENS = 40000, FEW = 24 };

static int32_t ids[TOKENS];
static int64_t offsets[TOKENS / 2 + 1];
static double gradients[TOKENS];
static argument of_ids, of_offsets, of_gradients;
static lockstep_recipe recipe;
static lockstep_model *model, *other;
static char folder[] = "/tmp/lockstep-memory-XXXXXX", path[64], saved[64];

static void make_inputs(int64_t tokens) {
    for (int64_t i = 0; i < tokens; i++) {
        ids[i] = (int32_t)(i * 37 % 90);
        gradients[i] = (double)(i % 5) - 2;
    }
    for (int64_t i = 0; i <= tokens / 2; i++) offsets[i] = 2 * i;
    argument_init(&of_ids, ids, LOCKSTEP_INT32, tokens, 0);
    argument_init(&of_offsets, offsets, LOCKSTEP_INT64, tokens / 2 + 1, 0);
    argument_init(&of_gradients, gradients, LOCKSTEP_FLOAT64, tokens, 0);
}

static const lockstep_tensor *output(argument *a, unsigned char *results, int32_t dtype, int64_t rows, int64_t columns) {
    argument_init(a, results, dtype, rows, columns);
    return &a->tensor;
}

/* --- Models --- */

static lockstep_score_options score_options(void) {
    lockstep_score_options options = LOCKSTEP_SCORE_OPTIONS_INIT;
    options.threads = 2;
    return options;
}

/* The bits of a model: its log-probs of some tokens. */
static void scored(unsigned char *results, const lockstep_model *used) {
    argument a, tokens;
    lockstep_score_options options = score_options();
    argument_init(&tokens, ids, LOCKSTEP_INT32, FEW, 0);
    CHECK_OK(lockstep_model_score(output(&a, results, LOCKSTEP_FLOAT64, FEW, 0), NULL, used, &tokens.tensor, NULL, &options));
}

static lockstep_status load(unsigned char *results, const char *name, const char *adapter) {
    lockstep_model *loaded = NULL;
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_model_load(&loaded, name, adapter, &recipe));
    scored(results, loaded);
    lockstep_model_destroy(loaded);
    return status;
}

static lockstep_status load_tied(unsigned char *results) { return load(results, FOLDER "llama_tied_rope_llama3", NULL); }
static lockstep_status load_experts(unsigned char *results) { return load(results, FOLDER "qwen3_moe", NULL); }
static lockstep_status load_adapter(unsigned char *results) {
    return load(results, FOLDER "llama_untied", FOLDER "llama_untied_lora");
}

static lockstep_status score(unsigned char *results) {
    argument a;
    lockstep_score_options options = score_options();
    return SHORT_OF_MEMORY(results, lockstep_model_score(output(&a, results, LOCKSTEP_FLOAT64, of_ids.shape[0], 0), NULL,
                                                         model, &of_ids.tensor, &of_offsets.tensor, &options));
}

static lockstep_status score_counting(unsigned char *results) {
    argument a;
    lockstep_score_options options = score_options();
    lockstep_score_report report;
    lockstep_status status;
    report.struct_size = sizeof report;
    status = SHORT_OF_MEMORY(results, lockstep_model_score_counting(
                                          &report, output(&a, results, LOCKSTEP_FLOAT64, of_ids.shape[0], 0), NULL, model,
                                          &of_ids.tensor, &of_offsets.tensor, &options));
    CHECK(report.sequences == of_ids.shape[0] / 2);
    return status;
}

static lockstep_status logits(unsigned char *results) {
    argument a;
    lockstep_score_options options = score_options();
    return SHORT_OF_MEMORY(results, lockstep_model_logits(output(&a, results, LOCKSTEP_FLOAT32, of_ids.shape[0], 97), model,
                                                          &of_ids.tensor, &of_offsets.tensor, &options));
}

static lockstep_status audit(unsigned char *results) {
    lockstep_score_options options = score_options();
    lockstep_audit *made = NULL;
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_audit_create_backward(&made, FOLDER "llama_untied",
                                                                                     &of_ids.tensor, &of_offsets.tensor,
                                                                                     1024, &options));
    lockstep_headroom row;
    size_t count = 0;
    CHECK_OK(lockstep_audit_read(&row, &count, made, 0));
    memcpy(results, &row.largest, sizeof row.largest);
    memcpy(results + 8, &count, sizeof count);
    lockstep_audit_destroy(made);
    return status;
}

/* A localiser is made and taken to its end. */
static lockstep_status localise(unsigned char *results) {
    lockstep_localiser_options options = LOCKSTEP_LOCALISER_OPTIONS_INIT;
    lockstep_localiser *made = NULL;
    lockstep_status status = lockstep_localiser_create(&made, model, other, &of_ids.tensor, &of_offsets.tensor, &options);
    size_t done = 0, total = 1;
    options.threads = 2;
    while (status == LOCKSTEP_OK && done < total) status = lockstep_localiser_step(made, &done, &total);
    if (status == LOCKSTEP_OK) {
        argument a, b;
        status = lockstep_localiser_log_probs(output(&a, results, LOCKSTEP_FLOAT64, of_ids.shape[0], 0),
                                              output(&b, results + (1 << 20), LOCKSTEP_FLOAT64, of_ids.shape[0], 0), made,
                                              LOCKSTEP_SWAP_NONE);
    }
    lockstep_localiser_destroy(made);
    return status;
}

static lockstep_status localiser(unsigned char *results) { return SHORT_OF_MEMORY(results, localise(results)); }

static lockstep_status dump(unsigned char *results) {
    lockstep_score_options options = score_options();
    lockstep_status status = SHORT_OF_MEMORY(
        results, lockstep_model_dump(path, model, &of_ids.tensor, &of_offsets.tensor, &options));
    CHECK(unlink(path) == 0);
    return status;
}

/* Rollouts of a prompt, by an engine that is emptied after a failure. */
static lockstep_status draw(unsigned char *results, lockstep_engine *engine) {
    static const uint64_t numbers[3] = {4, 5, 6};
    lockstep_rollout rollout;
    argument prompt;
    size_t running = 1;
    lockstep_status status;
    argument_init(&prompt, ids, LOCKSTEP_INT32, 5, 0);
    status = lockstep_engine_add(engine, &prompt.tensor, numbers, 3);
    while (status == LOCKSTEP_OK && running > 0) status = lockstep_engine_step(engine, &running, NULL);
    for (int place = 0;; place += 512) {
        CHECK_OK(lockstep_engine_take(&rollout, engine, status != LOCKSTEP_OK));
        if (rollout.token_count < 0) return status;
        if (status != LOCKSTEP_OK) continue;
        memcpy(results + place, rollout.tokens, sizeof(int32_t) * (size_t)rollout.token_count);
        memcpy(results + place + 256, rollout.raw_log_probs, sizeof(double) * (size_t)rollout.token_count);
    }
}

static lockstep_engine *engine_of(const lockstep_model *used) {
    lockstep_engine_options options = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_engine *engine = NULL;
    options.max_tokens = 20;
    options.threads = 2;
    CHECK_OK(lockstep_engine_create(&engine, used, &options));
    return engine;
}

static lockstep_status engine_create(unsigned char *results) {
    lockstep_engine_options options = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_engine *engine = NULL;
    lockstep_status status;
    options.max_tokens = 4;
    status = SHORT_OF_MEMORY(results, lockstep_engine_create(&engine, model, &options));
    CHECK_OK(draw(results, engine));
    lockstep_engine_destroy(engine);
    return status;
}

static lockstep_status engine_steps(unsigned char *results) {
    lockstep_engine *engine = engine_of(model);
    lockstep_status status;
    status = SHORT_OF_MEMORY(results, draw(results, engine));
    lockstep_engine_destroy(engine);
    return status;
}

/* --- Training --- */

static lockstep_trainer *trainer(void) {
    lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_trainer *made = NULL;
    options.threads = 2;
    CHECK_OK(lockstep_trainer_create(&made, FOLDER "llama_untied", &recipe, &options));
    return made;
}

/* What a trainer has added up. */
static void added(unsigned char *results, lockstep_trainer *used) {
    argument a;
    size_t elements = 0;
    CHECK_OK(lockstep_trainer_parameter(NULL, NULL, &elements, used, 0));
    CHECK(elements * 4 <= MEMORY_RESULTS / 2);
    CHECK_OK(lockstep_trainer_gradients(output(&a, results, LOCKSTEP_FLOAT32, (int64_t)elements, 0), used));
    lockstep_trainer_destroy(used);
}

static lockstep_status accumulate(lockstep_trainer *used, unsigned char *results) {
    argument a;
    return lockstep_trainer_accumulate(NULL, output(&a, results + MEMORY_RESULTS / 2, LOCKSTEP_FLOAT64, of_ids.shape[0], 0),
                                       NULL, used, &of_ids.tensor, &of_offsets.tensor, &of_gradients.tensor, NULL, 1024, 1);
}

static lockstep_status trainer_create(unsigned char *results) {
    lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_trainer *made = NULL;
    lockstep_status status;
    options.threads = 2;
    status = SHORT_OF_MEMORY(results, lockstep_trainer_create(&made, FOLDER "llama_untied", &recipe, &options));
    CHECK_OK(accumulate(made, results));
    added(results, made);
    return status;
}

static lockstep_status trainer_accumulate(unsigned char *results) {
    lockstep_trainer *used = trainer();
    lockstep_status status;
    CHECK_OK(accumulate(used, results));
    status = SHORT_OF_MEMORY(results, accumulate(used, results));
    added(results, used);
    return status;
}

static lockstep_status trainer_snapshot(unsigned char *results) {
    lockstep_trainer *used = trainer();
    lockstep_model *made = NULL;
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_trainer_snapshot(&made, used));
    scored(results, made);
    lockstep_model_destroy(made);
    lockstep_trainer_destroy(used);
    return status;
}

/* --- Runs and tasks --- */

static lockstep_task *task;

static lockstep_run *new_run(void) {
    lockstep_run_options options = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_environment environment = LOCKSTEP_ENVIRONMENT_INIT;
    lockstep_run *made = NULL;
    lockstep_status status;
    options.prompts = 2;
    options.samples = 3;
    options.algorithm = "paper/grpo-token-tis";
    options.model_seed = 1;
    options.threads = 2;
    environment.task = task;
    status = lockstep_run_create(&made, &options, &environment);
    if (memory_is_armed) {
        memory_status = status;
        return made;
    }
    CHECK_OK(status);
    return made;
}

static lockstep_run *saved_run(void) {
    lockstep_run *made = new_run();
    int64_t step = 0;
    CHECK_OK(lockstep_run_resume(&step, made, saved, 0));
    CHECK(step == 1);
    return made;
}

/* What a run has come to: its next step and its policy. */
static void came_to(unsigned char *results, lockstep_run *run) {
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    size_t size = MEMORY_RESULTS / 2;
    CHECK_OK(lockstep_run_step(&metrics, run));
    memcpy(results, &metrics, sizeof metrics);
    CHECK_OK(lockstep_run_policy(results + MEMORY_RESULTS / 2, &size, run));
    lockstep_run_destroy(run);
}

static lockstep_status created(lockstep_run **run) {
    *run = new_run();
    return *run != NULL ? LOCKSTEP_OK : memory_status;
}

static lockstep_status run_create(unsigned char *results) {
    lockstep_run *run = NULL;
    lockstep_status status = SHORT_OF_MEMORY(results, created(&run));
    came_to(results, run);
    return status;
}

/* A run that lacked memory to learn has stopped, and says so; its last checkpoint goes on with the same bits. */
static lockstep_status taken(lockstep_run **run) {
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_status status = lockstep_run_step(&metrics, *run);
    if (status == LOCKSTEP_OK || memory_is_armed || strstr(lockstep_last_error(), "has stopped") == NULL) return status;
    CHECK(lockstep_run_save(*run, folder, 2) == LOCKSTEP_ERROR_OUT_OF_MEMORY);
    lockstep_run_destroy(*run);
    *run = saved_run();
    return lockstep_run_step(&metrics, *run);
}

static lockstep_status run_step(unsigned char *results) {
    lockstep_run *run = saved_run();
    lockstep_status status = SHORT_OF_MEMORY(results, taken(&run));
    came_to(results, run);
    return status;
}

static lockstep_status run_save(unsigned char *results) {
    char command[128];
    int64_t step = 0;
    lockstep_run *run = saved_run(), *again = new_run();
    lockstep_status status;
    CHECK(mkdir(path, 0777) == 0);
    status = SHORT_OF_MEMORY(results, lockstep_run_save(run, path, 1));
    CHECK_OK(lockstep_run_resume(&step, again, path, 0));
    lockstep_run_destroy(run);
    came_to(results, again);
    snprintf(command, sizeof command, "rm -r %s", path);
    CHECK(system(command) == 0);
    return status;
}

static lockstep_status run_resume(unsigned char *results) {
    lockstep_run *run = new_run();
    lockstep_status status = SHORT_OF_MEMORY(results, lockstep_run_resume((void *)(results + 4096), run, saved, 0));
    came_to(results, run);
    return status;
}

static lockstep_status run_evaluate(unsigned char *results) {
    static const int64_t problems[3] = {3, 1, 7};
    lockstep_run *run = saved_run();
    lockstep_status status =
        SHORT_OF_MEMORY(results, lockstep_run_evaluate((void *)(results + 4096), run, problems, 3, 4, 9, 1));
    came_to(results, run);
    return status;
}

static lockstep_status run_policy(unsigned char *results) {
    lockstep_run *run = saved_run();
    size_t *size = (void *)results;
    lockstep_status status;
    *size = MEMORY_RESULTS / 2;
    status = SHORT_OF_MEMORY(results, lockstep_run_policy(results + MEMORY_RESULTS / 2, size, run));
    lockstep_run_destroy(run);
    return status;
}

static lockstep_status model_of_bytes(unsigned char *results) {
    static char bytes[MEMORY_RESULTS / 2];
    size_t size = sizeof bytes;
    lockstep_run *run = saved_run();
    lockstep_model *made = NULL;
    lockstep_status status;
    argument a, tokens;
    lockstep_score_options options = score_options();
    int32_t few[5] = {1, 2, 3, 2, 1};
    CHECK_OK(lockstep_run_policy(bytes, &size, run));
    lockstep_run_destroy(run);
    status = SHORT_OF_MEMORY(results, lockstep_model_load_bytes(&made, bytes, size, NULL));
    argument_init(&tokens, few, LOCKSTEP_INT32, 5, 0);
    CHECK_OK(lockstep_model_score(output(&a, results, LOCKSTEP_FLOAT64, 5, 0), NULL, made, &tokens.tensor, NULL, &options));
    lockstep_model_destroy(made);
    return status;
}

static lockstep_status supervised(unsigned char *results) {
    lockstep_supervised_options options = LOCKSTEP_SUPERVISED_OPTIONS_INIT;
    lockstep_supervised_metrics metrics = LOCKSTEP_SUPERVISED_METRICS_INIT;
    lockstep_supervised *run = NULL;
    lockstep_status status;
    options.task = task;
    options.batch = 4;
    options.threads = 2;
    status = SHORT_OF_MEMORY(results, lockstep_supervised_create(&run, &options));
    CHECK_OK(lockstep_supervised_step(&metrics, run));
    memcpy(results, &metrics, sizeof metrics);
    lockstep_supervised_destroy(run);
    return status;
}

static int task_lines;

static lockstep_status task_of_file(unsigned char *results) {
    char name[80];
    lockstep_task *made = NULL;
    lockstep_task_info info;
    lockstep_status status;
    FILE *file = fopen(path, "w");
    for (int i = 0; i < task_lines; i++)
        fprintf(file, "{\"prompt\": \"how much is %d and one?\", \"answer\": \"one more: #%d\"}\n", i, i + 1);
    fclose(file);
    snprintf(name, sizeof name, "file:%s", path);
    status = SHORT_OF_MEMORY(results, lockstep_task_create(&made, name, NULL));
    info.struct_size = sizeof info;
    CHECK_OK(lockstep_task_get_info(&info, made));
    CHECK(info.problems == task_lines);
    memcpy(results, &info, sizeof info);
    lockstep_task_destroy(made);
    CHECK(unlink(path) == 0);
    return status;
}

/* --- Logs --- */

static float log_probs[TOKENS];

static lockstep_log_writer *writer(void) {
    lockstep_log_writer *made = NULL;
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    header.model = "a model";
    CHECK_OK(lockstep_log_writer_create(&made, path, &header, NULL));
    return made;
}

static lockstep_status append(lockstep_log_writer *used) {
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    argument columns[2];
    argument_init(&columns[0], log_probs, LOCKSTEP_FLOAT32, of_ids.shape[0], 0);
    argument_init(&columns[1], ids, LOCKSTEP_INT32, of_ids.shape[0], 0);
    sequence.token_ids = &columns[1].tensor;
    sequence.trainer_log_probs = sequence.rollout_log_probs = &columns[0].tensor;
    return lockstep_log_writer_append(used, &sequence);
}

static lockstep_status log_append(unsigned char *results) {
    lockstep_log_writer *used = writer();
    lockstep_status status = SHORT_OF_MEMORY(results, append(used));
    FILE *file;
    lockstep_log_writer_destroy(used);
    file = fopen(path, "rb");
    CHECK(fread(results, 1, MEMORY_RESULTS, file) > 0);
    fclose(file);
    CHECK(unlink(path) == 0);
    return status;
}

static lockstep_status log_create(unsigned char *results) {
    lockstep_log_writer *used = writer();
    lockstep_log_writer_options options = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    lockstep_status status;
    CHECK_OK(append(used));
    lockstep_log_writer_destroy(used);
    used = NULL;
    options.mode = LOCKSTEP_LOG_APPEND; /* which reads what is there */
    status = SHORT_OF_MEMORY(results, lockstep_log_writer_create(&used, path, NULL, &options));
    CHECK_OK(append(used));
    lockstep_log_writer_destroy(used);
    CHECK(unlink(path) == 0);
    return status;
}

static lockstep_status log_next(unsigned char *results) {
    lockstep_log_writer *used = writer();
    lockstep_log_reader *reader = NULL;
    lockstep_log_batch batch;
    lockstep_status status;
    CHECK_OK(append(used));
    CHECK_OK(append(used));
    lockstep_log_writer_destroy(used);
    CHECK_OK(lockstep_log_reader_open(&reader, path, NULL));
    batch.struct_size = sizeof batch;
    status = SHORT_OF_MEMORY(results, lockstep_log_reader_next(&batch, reader, 1 << 30));
    CHECK(batch.sequences == 2);
    memcpy(results, batch.trainer_log_probs.data, sizeof(float) * (size_t)batch.tokens);
    lockstep_log_reader_destroy(reader);
    CHECK(unlink(path) == 0);
    return status;
}

static lockstep_status log_open(unsigned char *results) {
    lockstep_log_writer *used = writer();
    lockstep_log_reader *reader = NULL;
    lockstep_status status;
    lockstep_log_writer_destroy(used);
    status = SHORT_OF_MEMORY(results, lockstep_log_reader_open(&reader, path, NULL));
    lockstep_log_reader_destroy(reader);
    CHECK(unlink(path) == 0);
    return status;
}

static const struct {
    const char *name;
    memory_scenario scenario;
} scenarios[] = {
    {"model_load", load_tied},
    {"model_load, experts", load_experts},
    {"model_load, adapter", load_adapter},
    {"model_load_bytes", model_of_bytes},
    {"model_score", score},
    {"model_score_counting", score_counting},
    {"model_logits", logits},
    {"model_dump", dump},
    {"audit_create_backward", audit},
    {"localiser, all of it", localiser},
    {"engine_create", engine_create},
    {"engine_step, all of them", engine_steps},
    {"trainer_create", trainer_create},
    {"trainer_accumulate", trainer_accumulate},
    {"trainer_snapshot", trainer_snapshot},
    {"run_create", run_create},
    {"run_step", run_step},
    {"run_save", run_save},
    {"run_resume", run_resume},
    {"run_evaluate", run_evaluate},
    {"run_policy", run_policy},
    {"supervised_create", supervised},
    {"task_create, file", task_of_file},
    {"log_writer_create", log_create},
    {"log_writer_append", log_append},
    {"log_reader_open", log_open},
    {"log_reader_next", log_next},
};

static void each_allocation_fails(void) {
    make_inputs(FEW);
    task_lines = 20;
    for (size_t i = 0; i < sizeof scenarios / sizeof *scenarios; i++) memory_runs_out(scenarios[i].name, scenarios[i].scenario);
    printf("    %ld calls ran out of memory\n", memory_failures);
}

/* What grows with tokens, sequences and the lines of a file. */
static void each_limit_is_met(void) {
    make_inputs(TOKENS);
    task_lines = 8000;
    memory_is_limited("model_score", score);
    memory_is_limited("task_create, file", task_of_file);
    memory_is_limited("log_writer_append", log_append);
    memory_is_limited("log_writer_create", log_create);
    memory_is_limited("log_reader_next", log_next);
}

int main(void) {
    lockstep_task_options options = LOCKSTEP_TASK_OPTIONS_INIT;
    lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
    lockstep_run *run;
    char command[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (mkdtemp(folder) == NULL) return 1;
    snprintf(path, sizeof path, "%s/it", folder);
    snprintf(saved, sizeof saved, "%s/saved", folder);
    recipe.struct_size = sizeof recipe;
    CHECK_OK(lockstep_recipe_named(&recipe, "fp16"));
    CHECK_OK(lockstep_model_load(&model, FOLDER "llama_untied", NULL, &recipe));
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16"));
    CHECK_OK(lockstep_model_load(&other, FOLDER "llama_untied", NULL, &recipe));
    options.size = 5;
    CHECK_OK(lockstep_task_create(&task, "chain", &options));
    run = new_run();
    CHECK_OK(lockstep_run_step(&metrics, run));
    CHECK_OK(lockstep_run_save(run, saved, 1));
    lockstep_run_destroy(run);
    TEST(each_allocation_fails);
    TEST(each_limit_is_met);
    lockstep_task_destroy(task);
    lockstep_model_destroy(model);
    lockstep_model_destroy(other);
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
    return test_report();
}

/* Options of runs, supervised runs, tasks and log writers, and calls with them in any order. */
#include "call.h"

#include <unistd.h>

#define WORDS "run options environment metrics prompts samples updates model adapter algorithm trainer rollout correction advantages " \
    "objective policies scaler schedule task problems step request index rollouts rewards count size error_rate tokens text prompt " \
    "response header sequence writer column id record mask log name recipe monitor folder layer reward gradient batch steps"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

static lockstep_task *chain;

static void use_task(fuzz_call *c) {
    static const char *const names[] = {"chain", "arithmetic", "sort", "reverse", "countdown"};
    static int32_t ids[4096];
    lockstep_task_options usual = LOCKSTEP_TASK_OPTIONS_INIT;
    lockstep_task *task = NULL;
    lockstep_task_info info;
    usual.size = (int32_t)fuzz_pick(&c->bytes, 0, 12);
    const char *name = names[fuzz_pick(&c->bytes, 0, 4)];
    const lockstep_task_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_task_create(&task, name, options), WORDS) != LOCKSTEP_OK) return;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    FUZZ_CHECK(lockstep_task_get_info(&info, task) == LOCKSTEP_OK);
    for (int i = 0; i < 3; i++) {
        int64_t index = fuzz_u8(&c->bytes) > 200 ? fuzz_integer(&c->bytes) : fuzz_u8(&c->bytes);
        uint64_t seed = (uint64_t)fuzz_integer(&c->bytes);
        double error_rate = fuzz_u8(&c->bytes) > 200 ? fuzz_double(&c->bytes) : 0;
        size_t count = 4096, size = 4096;
        char text[4096];
        double *reward = fuzz_output(c, sizeof *reward, FUZZ_REQUIRED);
        if (FUZZ_STATUS(lockstep_task_demonstration(ids, &count, task, index, seed, error_rate), WORDS) == LOCKSTEP_OK) {
            const lockstep_tensor *response = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INTEGERS, (int64_t)count, FUZZ_COUNTS, 1);
            int is_right = response && response->data && response->ndim == 1 && response->shape && !response->strides &&
                           (response->dtype.bits == 32 || response->dtype.bits == 64) && response->dtype.code == 0 &&
                           response->shape[0] == (int64_t)count && c->blocks[c->block_count - 1].size == count * response->dtype.bits / 8;
            for (size_t k = 0; is_right && k < count; k++) fuzz_set(response->data, response->dtype, (int64_t)k, ids[k]);
            count = 4096;
            FUZZ_CHECK(lockstep_task_prompt(ids, &count, task, index, seed) == LOCKSTEP_OK);
            int64_t shape = (int64_t)count;
            lockstep_tensor prompt = lockstep_tensor_of(ids, LOCKSTEP_INT32, 1, &shape);
            fuzz_ready(c);
            if (fuzz_end(c, lockstep_task_reward(reward, task, &prompt, response), WORDS) == LOCKSTEP_OK)
                FUZZ_CHECK(*reward == 1 || *reward == 0);
            FUZZ_STATUS(lockstep_task_decode(text, &size, task, response), WORDS);
        }
        for (size_t k = 0; k < sizeof text - 1; k++) text[k] = (char)fuzz_u8(&c->bytes);
        text[40] = 0;
        count = 4096;
        if (FUZZ_STATUS(lockstep_task_encode(ids, &count, task, text), WORDS " character") == LOCKSTEP_OK)
            for (size_t k = 0; k < count; k++) FUZZ_CHECK(ids[k] >= 0 && ids[k] < info.vocab);
        if (c->bytes.left == 0) break;
    }
    lockstep_task_destroy(task);
}

static const char *text_of(fuzz_call *c) {
    size_t length = fuzz_u8(&c->bytes) % 12;
    char *text = fuzz_memory(c, length + 1, 0);
    if (fuzz_u8(&c->bytes) > 230) return NULL;
    for (size_t i = 0; i < length; i++) text[i] = (char)fuzz_u8(&c->bytes);
    return text;
}

static void write_log(fuzz_call *c) {
    static const size_t header_pointers[] = {offsetof(lockstep_log_header, model), sizeof(lockstep_log_header), 0, 0};
    static const size_t pointers[] = {offsetof(lockstep_log_sequence, reward), sizeof(lockstep_log_sequence), 0, 0};
    static const int32_t columns[] = {LOCKSTEP_FLOAT32, LOCKSTEP_FLOAT16, LOCKSTEP_BFLOAT16, 0};
    lockstep_log_header usual = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_log_writer_options usual_writer = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    lockstep_log_writer *writer = NULL;
    lockstep_log_reader *reader = NULL;
    char path[300];
    snprintf(path, sizeof path, "%s/runs.lockstep", fuzz_folder());
    unlink(path);
    if (fuzz_u8(&c->bytes) > 128) usual.model = text_of(c);
    if (fuzz_u8(&c->bytes) > 128) usual.rollout_engine = text_of(c);
    const char **keys = fuzz_memory(c, 2 * sizeof *keys, 0), **values = fuzz_memory(c, 2 * sizeof *values, 0);
    usual.pairs = (size_t)fuzz_pick(&c->bytes, 0, 2);
    for (size_t i = 0; i < usual.pairs; i++) {
        keys[i] = text_of(c);
        values[i] = text_of(c);
    }
    usual.keys = keys;
    usual.values = values;
    const lockstep_log_header *header = fuzz_options(c, &usual, sizeof usual, header_pointers);
    const lockstep_log_writer_options *options = fuzz_options(c, &usual_writer, sizeof usual_writer, NULL);
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_log_writer_create(&writer, path, header, options),
                 WORDS " model rollout_engine keys values pairs mode sync_every created log_prob_mode") != LOCKSTEP_OK) {
        FUZZ_CHECK(writer == NULL);
        return;
    }
    int64_t written = 0, tokens = 0;
    for (int i = 0; i < 4; i++) {
        lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
        int64_t count = fuzz_pick(&c->bytes, 0, 140);
        float *numbers = fuzz_memory(c, 8, 0);
        numbers[0] = (float)fuzz_double(&c->bytes);
        sequence.id = (uint64_t)fuzz_integer(&c->bytes);
        if (fuzz_u8(&c->bytes) & 1) sequence.reward = numbers;
        if (fuzz_u8(&c->bytes) & 1) sequence.advantage = numbers + 1;
        sequence.token_ids = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_INTEGERS, count, FUZZ_COUNTS, 50000);
        sequence.rollout_log_probs = fuzz_vector(c, FUZZ_OPTIONAL, columns, count, FUZZ_LOG_PROBS, 0);
        sequence.trainer_log_probs = fuzz_vector(c, FUZZ_OPTIONAL, columns, count, FUZZ_LOG_PROBS, 0);
        sequence.mask = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLAGS, count, FUZZ_MASK, 0);
        const lockstep_log_sequence *given = fuzz_options(c, &sequence, sizeof sequence, pointers);
        fuzz_ready(c);
        if (fuzz_end(c, lockstep_log_writer_append(writer, given), WORDS " prompt_tokens") == LOCKSTEP_OK) {
            const lockstep_tensor *any = sequence.token_ids ? sequence.token_ids : sequence.rollout_log_probs
                                         ? sequence.rollout_log_probs : sequence.trainer_log_probs;
            written++;
            if (given->struct_size == sizeof sequence && any) tokens += any->shape[0];
            else tokens = -1000000;
        }
    }
    FUZZ_CHECK(lockstep_log_writer_sync(writer) == LOCKSTEP_OK && lockstep_log_writer_close(writer) == LOCKSTEP_OK);
    lockstep_log_writer_destroy(writer);
    FUZZ_CHECK(lockstep_log_reader_open(&reader, path, NULL) == LOCKSTEP_OK);
    lockstep_log_batch batch;
    memset(&batch, 0, sizeof batch);
    batch.struct_size = sizeof batch;
    FUZZ_CHECK(lockstep_log_reader_next(&batch, reader, 1 << 20) == LOCKSTEP_OK);
    FUZZ_CHECK(batch.sequences == written && (tokens < 0 || batch.tokens == tokens));
    lockstep_log_reader_destroy(reader);
}

static int32_t prompt_of(void *context, int32_t *tokens, size_t *count, size_t room, int64_t problem) {
    uint8_t way = *(uint8_t *)context;
    *count = way == 1 ? 0 : way == 2 ? room + 1 : 2;
    tokens[0] = way == 3 ? -1 : (int32_t)((uint64_t)problem % 7);
    tokens[1] = way == 4 ? INT32_MAX : 3;
    return way == 5;
}

static int32_t reward_of(void *context, double *reward, int64_t step, int64_t problem, int64_t sample, const int32_t *prompt,
                         size_t prompt_count, const int32_t *response, size_t response_count) {
    (void)step;
    (void)problem;
    (void)prompt;
    (void)response;
    uint8_t way = *(uint8_t *)context;
    *reward = way == 6 ? NAN : way == 7 ? INFINITY : way == 8 ? 1e308 : (double)sample;
    return way == 9 || prompt_count != 2 || response_count == 0;
}

/* A task, or callbacks that do what `way` says. */
static const lockstep_environment *environment_of(fuzz_call *c, uint8_t *way) {
    static const size_t pointers[] = {
        offsetof(lockstep_environment, task), offsetof(lockstep_environment, task_seed),
        offsetof(lockstep_environment, problems), offsetof(lockstep_environment, problem_count),
        offsetof(lockstep_environment, context), sizeof(lockstep_environment), 0, 0};
    lockstep_environment usual = LOCKSTEP_ENVIRONMENT_INIT;
    if (*way < 12) {
        usual.task = chain;
    } else {
        usual.prompt = prompt_of;
        usual.reward = reward_of;
        usual.context = way;
        usual.max_tokens = 3;
    }
    return fuzz_options(c, &usual, sizeof usual, pointers);
}

static int takes_hours(const lockstep_environment *given) {
    return fuzz_is_whole(given, sizeof *given) && given->max_tokens > 64;
}

static void use_run(fuzz_call *c) {
    static const size_t run_pointers[] = {
        offsetof(lockstep_run_options, model), offsetof(lockstep_run_options, model_seed),
        offsetof(lockstep_run_options, trainer), offsetof(lockstep_run_options, policies),
        offsetof(lockstep_run_options, schedule), offsetof(lockstep_run_options, max_norm),
        offsetof(lockstep_run_options, scaler), offsetof(lockstep_run_options, learning_steps), 0, 0};
    lockstep_run_options usual = LOCKSTEP_RUN_OPTIONS_INIT;
    lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    lockstep_advantage_options advantages = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    lockstep_recipe recipe;
    lockstep_run *run = NULL;
    uint8_t way = fuzz_u8(&c->bytes) % 24;
    static const size_t rejections[] = {offsetof(lockstep_correction_options, rejections), sizeof correction, 0, 0};
    memset(&recipe, 0, sizeof recipe);
    recipe.struct_size = sizeof recipe;
    FUZZ_CHECK(lockstep_recipe_named(&recipe, "bf16") == LOCKSTEP_OK);
    usual.model = TINY;
    usual.prompts = 2;
    usual.samples = 2;
    usual.threads = 1;
    if (fuzz_u8(&c->bytes) & 1) {
        usual.algorithm = lockstep_preset_name(fuzz_u8(&c->bytes) % 12);
    } else {
        usual.correction = fuzz_options(c, &correction, sizeof correction, rejections);
        usual.objective = fuzz_options(c, &objective, sizeof objective, NULL);
        usual.advantages = fuzz_options(c, &advantages, sizeof advantages, NULL);
    }
    if (fuzz_u8(&c->bytes) > 128) usual.trainer = fuzz_options(c, &recipe, sizeof recipe, NULL);
    const lockstep_run_options *options = fuzz_options(c, &usual, sizeof usual, run_pointers);
    const lockstep_environment *given = environment_of(c, &way);
    /* So many rollouts are no fault, but take hours. */
    if (fuzz_is_whole(options, sizeof *options) &&
        (options->prompts > 64 || options->samples > 64 || options->updates > 64 || options->lora_rank > 64))
        return;
    if (takes_hours(given)) return;
    way = way < 12 ? 0 : way - 12;
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_run_create(&run, options, given), WORDS) != LOCKSTEP_OK) {
        FUZZ_CHECK(run == NULL);
        return;
    }
    for (int i = 0; i < 3; i++) {
        lockstep_run_metrics metrics = LOCKSTEP_RUN_METRICS_INIT;
        lockstep_rollout_request request = LOCKSTEP_ROLLOUT_REQUEST_INIT;
        size_t count = 0;
        lockstep_status status = FUZZ_STATUS(lockstep_run_request(NULL, &count, run, 0), WORDS);
        size_t index = fuzz_u8(&c->bytes) % 4;
        if (status == LOCKSTEP_OK && FUZZ_STATUS(lockstep_run_request(&request, NULL, run, index), WORDS) == LOCKSTEP_OK &&
            request.samples <= 8) {
            int32_t tokens[4];
            double numbers[4];
            lockstep_rollout rollout;
            for (int k = 0; k < 4; k++) {
                tokens[k] = fuzz_u8(&c->bytes) > 200 ? (int32_t)fuzz_integer(&c->bytes) : (int32_t)fuzz_pick(&c->bytes, 0, 13);
                numbers[k] = fuzz_u8(&c->bytes) > 200 ? fuzz_double(&c->bytes) : -1;
            }
            memset(&rollout, 0, sizeof rollout);
            rollout.id = fuzz_u8(&c->bytes) > 200 ? (uint64_t)fuzz_integer(&c->bytes) : request.first_id;
            rollout.token_count = fuzz_u8(&c->bytes) > 200 ? fuzz_integer(&c->bytes) : 3;
            if (rollout.token_count > 4) rollout.token_count = -rollout.token_count;
            rollout.tokens = tokens;
            rollout.raw_log_probs = rollout.processed_log_probs = rollout.kept_mass = numbers;
            rollout.finish = (int32_t)fuzz_pick(&c->bytes, 0, 3);
            FUZZ_STATUS(lockstep_run_give(run, request.step + (fuzz_u8(&c->bytes) > 240), &rollout, fuzz_u8(&c->bytes) % 2), WORDS);
        }
        status = FUZZ_STATUS(lockstep_run_step(&metrics, run), WORDS);
        if (status == LOCKSTEP_OK) FUZZ_CHECK(metrics.step >= 1 && metrics.responses > 0);
        else FUZZ_CHECK(metrics.step == 0);
        if (fuzz_u8(&c->bytes) > 128) {
            int64_t problems[2] = {fuzz_u8(&c->bytes), fuzz_u8(&c->bytes) > 240 ? fuzz_integer(&c->bytes) : 1};
            double rewards[2], temperature = fuzz_u8(&c->bytes) > 200 ? fuzz_double(&c->bytes) : 1;
            FUZZ_STATUS(lockstep_run_evaluate(rewards, run, problems, 2, fuzz_pick(&c->bytes, 0, 3), 0, temperature), WORDS);
        }
        if (way) way = way == 1 ? 0 : way - 1;
    }
    size_t size = 0;
    if (FUZZ_STATUS(lockstep_run_policy(NULL, &size, run), WORDS) == LOCKSTEP_OK && size < 1 << 20) {
        unsigned char *bytes = malloc(size);
        lockstep_model *model = NULL;
        FUZZ_CHECK(bytes != NULL);
        if (FUZZ_STATUS(lockstep_run_policy(bytes, &size, run), WORDS " tensor") == LOCKSTEP_OK)
            FUZZ_CHECK(lockstep_model_load_bytes(&model, bytes, size, NULL) == LOCKSTEP_OK);
        lockstep_model_destroy(model);
        free(bytes);
    }
    lockstep_run_destroy(run);
}

static void find(fuzz_call *c) {
    static lockstep_model *model;
    if (model == NULL) FUZZ_CHECK(lockstep_model_load(&model, TINY, NULL, NULL) == LOCKSTEP_OK);
    uint8_t way = fuzz_u8(&c->bytes) % 24;
    const lockstep_environment *given = environment_of(c, &way);
    size_t count = (size_t)fuzz_pick(&c->bytes, 0, 4);
    int64_t *problems = fuzz_output(c, count * sizeof *problems, FUZZ_REQUIRED);
    int64_t candidates = fuzz_u8(&c->bytes) > 200 ? fuzz_integer(&c->bytes) : 12;
    int64_t samples = fuzz_u8(&c->bytes) > 200 ? fuzz_integer(&c->bytes) : 2;
    double low = fuzz_u8(&c->bytes) > 128 ? fuzz_double(&c->bytes) : 0;
    double high = fuzz_u8(&c->bytes) > 128 ? fuzz_double(&c->bytes) : 1;
    int32_t threads = fuzz_u8(&c->bytes) > 240 ? (int32_t)fuzz_integer(&c->bytes) : 1;
    /* So many are no fault, but take hours; more than that are refused. */
    if (takes_hours(given) || (candidates > 64 && candidates <= 1 << 24) || (samples > 16 && samples <= 1 << 16)) return;
    way = way < 12 ? 0 : way - 12;
    fuzz_ready(c);
    lockstep_status status =
        lockstep_find_perfectible(problems, count, model, given, candidates, samples, low, high, fuzz_u8(&c->bytes), threads);
    if (fuzz_end(c, status, WORDS " perfectible candidates") == LOCKSTEP_OK)
        for (size_t i = 0; i < count; i++) FUZZ_CHECK(problems[i] >= 0 && (i == 0 || problems[i] != problems[i - 1]));
}

static void supervise(fuzz_call *c) {
    static const size_t pointers[] = {
        offsetof(lockstep_supervised_options, task), offsetof(lockstep_supervised_options, model_seed),
        offsetof(lockstep_supervised_options, recipe), offsetof(lockstep_supervised_options, steps),
        offsetof(lockstep_supervised_options, adapter), sizeof(lockstep_supervised_options), 0, 0};
    lockstep_supervised_options usual = LOCKSTEP_SUPERVISED_OPTIONS_INIT;
    lockstep_supervised_metrics metrics = LOCKSTEP_SUPERVISED_METRICS_INIT, other = LOCKSTEP_SUPERVISED_METRICS_INIT;
    lockstep_supervised *run = NULL, *again = NULL;
    lockstep_recipe recipe;
    char folder[300], model[310];
    memset(&recipe, 0, sizeof recipe);
    recipe.struct_size = sizeof recipe;
    FUZZ_CHECK(lockstep_recipe_named(&recipe, fuzz_u8(&c->bytes) & 1 ? "fp16" : "fp32") == LOCKSTEP_OK);
    usual.task = fuzz_u8(&c->bytes) < 250 ? chain : NULL;
    usual.model = fuzz_u8(&c->bytes) < 240 ? TINY : fuzz_u8(&c->bytes) & 1 ? NULL : "/nowhere";
    usual.threads = 1;
    usual.batch = 2;
    switch (fuzz_u8(&c->bytes) % 4) {
    case 0: usual.adapter = TINY; break;
    case 1:
        usual.lora_rank = 1;
        usual.lora_alpha = 2;
    }
    if (fuzz_u8(&c->bytes) > 128) usual.recipe = fuzz_options(c, &recipe, sizeof recipe, NULL);
    const lockstep_supervised_options *options = fuzz_options(c, &usual, sizeof usual, pointers);
    if (fuzz_is_whole(options, sizeof *options) && (options->batch > 64 || options->lora_rank > 64)) return; /* hours */
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_supervised_create(&run, options), WORDS " nowhere") != LOCKSTEP_OK) {
        FUZZ_CHECK(run == NULL);
        return;
    }
    int64_t steps = fuzz_pick(&c->bytes, 0, 2), resumed = -1;
    for (int64_t i = 0; i < steps; i++) {
        lockstep_status status = FUZZ_STATUS(lockstep_supervised_step(&metrics, run), WORDS " tensor");
        if (status != LOCKSTEP_OK) goto end;
        FUZZ_CHECK(metrics.step == i + 1 && metrics.tokens > 0 && (metrics.skipped || metrics.loss >= 0));
    }
    snprintf(folder, sizeof folder, "%s/supervised", fuzz_folder());
    snprintf(model, sizeof model, "%s/model", folder);
    if (fuzz_u8(&c->bytes) & 1) {
        int64_t kept = fuzz_u8(&c->bytes) > 200 ? fuzz_integer(&c->bytes) : 1;
        if (FUZZ_STATUS(lockstep_supervised_save(run, folder, kept), WORDS " kept tensor") != LOCKSTEP_OK) goto end;
        FUZZ_CHECK(lockstep_supervised_create(&again, options) == LOCKSTEP_OK);
        FUZZ_CHECK(lockstep_supervised_resume(&resumed, again, folder, 0) == LOCKSTEP_OK && resumed == steps);
        lockstep_status one = FUZZ_STATUS(lockstep_supervised_step(&metrics, run), WORDS " tensor");
        FUZZ_CHECK(lockstep_supervised_step(&other, again) == one);
        FUZZ_CHECK(one != LOCKSTEP_OK || memcmp(&metrics, &other, sizeof metrics) == 0);
    }
    if (fuzz_u8(&c->bytes) & 1 && FUZZ_STATUS(lockstep_supervised_save_model(run, model), WORDS " tensor") == LOCKSTEP_OK) {
        lockstep_model *saved = NULL;
        int has_adapter = options->lora_rank != 0 || options->adapter != NULL;
        FUZZ_CHECK(lockstep_model_load(&saved, has_adapter ? TINY : model, has_adapter ? model : NULL, NULL) == LOCKSTEP_OK ||
                   options->model == NULL);
        lockstep_model_destroy(saved);
        FUZZ_CHECK(lockstep_supervised_save_model(run, model) == LOCKSTEP_ERROR_FILE);
    }
    fuzz_remove("supervised");
end:
    lockstep_supervised_destroy(run);
    lockstep_supervised_destroy(again);
}

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    if (chain == NULL) {
        lockstep_task_options small = LOCKSTEP_TASK_OPTIONS_INIT;
        small.size = 3;
        FUZZ_CHECK(lockstep_task_create(&chain, "chain", &small) == LOCKSTEP_OK);
    }
    fuzz_begin(&c, data, size);
    uint8_t what = fuzz_u8(&c.bytes);
    switch (what < 192 ? what % 3 : 3 + what % 2) {
    case 3: supervise(&c); break;
    case 4: find(&c); break;
    case 0: use_task(&c); break;
    case 1: write_log(&c); break;
    default: use_run(&c);
    }
    fuzz_free(&c);
}

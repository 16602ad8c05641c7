/* The same bits everywhere: each subject of Tests/Vectors/agreement.txt, on every instruction set this machine has and on
 * 1, 2 and 4 threads, has the digest that stands there; Tests/Conformance/test_agreement.py and AgreementTests.swift
 * compute the same from the other languages. `agreement_test print [set [threads]]` prints the digests instead, of one set or
 * number of threads if it is named: SET THREADS SUBJECT DIGEST.
 */
#include "test.h"

#include <stdlib.h>

#define MODEL ROOT "/examples/data/chain-sft"
#define RECORD ROOT "/Tests/Vectors/agreement.txt"

static const struct {
    const char *name;
    lockstep_instruction_set set;
} sets[] = {{"baseline", LOCKSTEP_INSTRUCTION_SET_BASELINE}, {"avx2", LOCKSTEP_INSTRUCTION_SET_AVX2},
            {"avx512", LOCKSTEP_INSTRUCTION_SET_AVX512}, {"neon", LOCKSTEP_INSTRUCTION_SET_NEON}};
static const int32_t thread_counts[] = {1, 2, 4};

/* What runs now. */
static lockstep_instruction_set set;
static int32_t threads;
static int printing;

static void must(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    printf("%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static void *room(size_t bytes) {
    void *memory = calloc(bytes, 1);
    if (memory == NULL) exit(1);
    return memory;
}

/* 32 random bits, and some value in [-0.5, 0.5), the same in every language. */
static uint32_t bits(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return x ^ x >> 13;
}
static float value(uint32_t i) { return (float)(bits(i) >> 8) * 0x1p-24f - 0.5f; }

static float *values(size_t count, uint32_t first, float factor) {
    float *filled = room(count * sizeof *filled);
    for (size_t i = 0; i < count; i++) filled[i] = value(first + (uint32_t)i) * factor;
    return filled;
}

/* CRC-32 of bytes after those whose sum is `sum`, as zlib's crc32 has it. */
static uint32_t digest_of(uint32_t sum, const void *bytes, size_t count) {
    static uint32_t table[256];
    for (uint32_t i = 0; table[255] == 0; i++) { /* once */
        uint32_t entry = i;
        for (int bit = 0; bit < 8; bit++) entry = entry >> 1 ^ (entry & 1 ? 0xedb88320u : 0);
        table[i] = entry;
    }
    sum = ~sum;
    for (size_t i = 0; i < count; i++) sum = sum >> 8 ^ table[(sum ^ ((const unsigned char *)bytes)[i]) & 255];
    return ~sum;
}

/* What the record says of a subject; 0 if nothing. */
static uint32_t recorded(const char *subject) {
    char name[64];
    unsigned digest, found = 0;
    FILE *file = fopen(RECORD, "r");
    if (file == NULL) return 0;
    while (fscanf(file, "%63s %x", name, &digest) == 2)
        if (strcmp(name, subject) == 0) found = digest;
    fclose(file);
    return found;
}

static void subject(const char *name, uint32_t digest) {
    if (printing) {
        for (size_t i = 0; i < sizeof sets / sizeof *sets; i++)
            if (sets[i].set == set) printf("%s %d %s %08x\n", sets[i].name, threads, name, (unsigned)digest);
    } else if (digest != recorded(name)) {
        test_fail(__FILE__, __LINE__, "%s: instruction set %d, %d threads: %08x is not the digest in %s", name, set,
                  threads, (unsigned)digest, RECORD);
    }
}

/* A tensor of one or two dimensions; its shape is good for the next 256. */
static lockstep_tensor tensor(void *data, int32_t dtype, int64_t rows, int64_t columns) {
    static int64_t shapes[256][2];
    static unsigned next;
    int64_t *shape = shapes[next++ % 256];
    shape[0] = rows;
    shape[1] = columns;
    return lockstep_tensor_of(data, dtype, columns ? 2 : 1, shape);
}

static void *converted(float *source, int32_t dtype, size_t count, lockstep_rounding rounding) {
    void *result = room(count * 4);
    lockstep_convert_options options = LOCKSTEP_CONVERT_OPTIONS_INIT;
    lockstep_tensor from = tensor(source, LOCKSTEP_FLOAT32, (int64_t)count, 0);
    lockstep_tensor to = tensor(result, dtype, (int64_t)count, 0);
    options.rounding = rounding;
    options.seed = 7;
    options.threads = threads;
    options.instruction_set = set;
    must(lockstep_convert(&to, NULL, &from, &options));
    return result;
}

static void formats(void) {
    enum { COUNT = 70000 };
    static const struct {
        const char *name;
        int32_t dtype;
        size_t size;
    } kinds[] = {{"fp16", LOCKSTEP_FLOAT16, 2}, {"bf16", LOCKSTEP_BFLOAT16, 2}, {"e4m3fn", LOCKSTEP_FLOAT8_E4M3FN, 1},
                 {"e5m2", LOCKSTEP_FLOAT8_E5M2, 1}};
    uint32_t *patterns = room(COUNT * sizeof *patterns); /* every exponent, subnormals, infinities and NaN */
    for (uint32_t i = 0; i < COUNT; i++) patterns[i] = bits(i);
    for (size_t kind = 0; kind < sizeof kinds / sizeof *kinds; kind++) {
        char name[64];
        uint32_t digest = 0;
        for (int rounding = 0; rounding < 3; rounding++) {
            void *narrow = converted((float *)patterns, kinds[kind].dtype, COUNT, rounding);
            float *wide = room(COUNT * sizeof *wide);
            lockstep_tensor from = tensor(narrow, kinds[kind].dtype, COUNT, 0);
            lockstep_tensor to = tensor(wide, LOCKSTEP_FLOAT32, COUNT, 0);
            lockstep_convert_options options = LOCKSTEP_CONVERT_OPTIONS_INIT;
            options.threads = threads;
            options.instruction_set = set;
            must(lockstep_convert(&to, NULL, &from, &options));
            digest = digest_of(digest_of(digest, narrow, COUNT * kinds[kind].size), wide, COUNT * sizeof *wide);
            free(narrow);
            free(wide);
        }
        snprintf(name, sizeof name, "convert-%s", kinds[kind].name);
        subject(name, digest);
    }
    free(patterns);
}

static const struct {
    const char *name;
    int32_t dtype;
    size_t size;
} numbers[] = {{"fp32", LOCKSTEP_FLOAT32, 4}, {"fp16", LOCKSTEP_FLOAT16, 2}, {"bf16", LOCKSTEP_BFLOAT16, 2}};

static void log_probs(void) {
    enum { TOKENS = 37, VOCAB = 5003 };
    float *wide = values(TOKENS * VOCAB, 0, 16);
    int32_t targets[TOKENS];
    float found[2][TOKENS], upstream[TOKENS];
    for (int i = 0; i < TOKENS; i++) targets[i] = i * 137 % VOCAB, upstream[i] = value(900000 + (uint32_t)i);
    lockstep_tensor ids = tensor(targets, LOCKSTEP_INT32, TOKENS, 0);
    lockstep_tensor log_prob = tensor(found[0], LOCKSTEP_FLOAT32, TOKENS, 0);
    lockstep_tensor entropy = tensor(found[1], LOCKSTEP_FLOAT32, TOKENS, 0);
    lockstep_tensor wanted = tensor(upstream, LOCKSTEP_FLOAT32, TOKENS, 0);
    for (int kind = 0; kind < 3; kind++) {
        char name[64];
        void *narrow = converted(wide, numbers[kind].dtype, TOKENS * VOCAB, 0);
        lockstep_tensor logits = tensor(narrow, numbers[kind].dtype, TOKENS, VOCAB);
        lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
        options.temperature = 0.75;
        options.threads = threads;
        options.instruction_set = set;
        must(lockstep_log_probs(&log_prob, &entropy, NULL, NULL, &logits, &ids, &options));
        snprintf(name, sizeof name, "log-probs-%s", numbers[kind].name);
        subject(name, digest_of(0, found, sizeof found));
        must(lockstep_log_probs_backward(&logits, &wanted, &wanted, NULL, &logits, &ids, &options));
        snprintf(name, sizeof name, "log-probs-backward-%s", numbers[kind].name);
        subject(name, digest_of(0, narrow, TOKENS * VOCAB * numbers[kind].size));
        free(narrow);
    }
    free(wide);
}

static void linear_log_probs(void) {
    enum { TOKENS = 48, H = 256, VOCAB = 1501 };
    float *wide_hidden = values(TOKENS * H, 0, 1), *wide_weight = values(VOCAB * H, 1000003, 1);
    int32_t targets[TOKENS];
    float found[2][TOKENS], upstream[TOKENS];
    for (int i = 0; i < TOKENS; i++) targets[i] = i * 61 % VOCAB, upstream[i] = value(900000 + (uint32_t)i);
    lockstep_tensor ids = tensor(targets, LOCKSTEP_INT32, TOKENS, 0);
    lockstep_tensor log_prob = tensor(found[0], LOCKSTEP_FLOAT32, TOKENS, 0);
    lockstep_tensor entropy = tensor(found[1], LOCKSTEP_FLOAT32, TOKENS, 0);
    lockstep_tensor wanted = tensor(upstream, LOCKSTEP_FLOAT32, TOKENS, 0);
    for (int kind = 0; kind < 3; kind++) {
        char name[64];
        void *hidden = converted(wide_hidden, numbers[kind].dtype, TOKENS * H, 0);
        void *weight = converted(wide_weight, numbers[kind].dtype, VOCAB * H, 0);
        float *gradients = room((TOKENS + VOCAB) * H * sizeof *gradients);
        lockstep_tensor states = tensor(hidden, numbers[kind].dtype, TOKENS, H);
        lockstep_tensor head = tensor(weight, numbers[kind].dtype, VOCAB, H);
        lockstep_tensor d_states = tensor(gradients, LOCKSTEP_FLOAT32, TOKENS, H);
        lockstep_tensor d_head = tensor(gradients + TOKENS * H, LOCKSTEP_FLOAT32, VOCAB, H);
        lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
        options.threads = threads;
        options.instruction_set = set;
        must(lockstep_linear_log_probs(&log_prob, &entropy, NULL, &states, &head, NULL, &ids, &options));
        must(lockstep_linear_log_probs_backward(&d_states, &d_head, NULL, &wanted, NULL, NULL, &states, &head, NULL, &ids,
                                                &options));
        snprintf(name, sizeof name, "linear-log-probs-%s", numbers[kind].name);
        subject(name, digest_of(digest_of(0, found, sizeof found), gradients, (TOKENS + VOCAB) * H * sizeof *gradients));
        free(hidden);
        free(weight);
        free(gradients);
    }
    free(wide_hidden);
    free(wide_weight);
}

enum { SEQUENCES = 12, PROMPT = 3, RESPONSE = 32, LENGTH = PROMPT + RESPONSE };
static int32_t tokens[SEQUENCES * LENGTH];

/* Demonstrations of the chain task. */
static void demonstrations(void) {
    lockstep_task *task;
    must(lockstep_task_create(&task, "chain", NULL));
    for (int i = 0; i < SEQUENCES; i++) {
        size_t head = PROMPT, rest = RESPONSE;
        must(lockstep_task_prompt(tokens + i * LENGTH, &head, task, i, 1));
        must(lockstep_task_demonstration(tokens + i * LENGTH + PROMPT, &rest, task, i, 1, 0.0));
    }
    lockstep_task_destroy(task);
}

static void scoring_and_decoding(void) {
    for (int kind = 0; kind < 3; kind++) {
        char name[64];
        lockstep_recipe recipe = {.struct_size = sizeof recipe};
        lockstep_model *model;
        must(lockstep_recipe_named(&recipe, numbers[kind].name));
        must(lockstep_model_load(&model, MODEL, NULL, &recipe));

        /* Ragged: sequence i has its first 35 - 2 i tokens. */
        int32_t ragged[SEQUENCES * LENGTH];
        int64_t offsets[SEQUENCES + 1] = {0};
        for (int i = 0; i < SEQUENCES; i++) {
            memcpy(ragged + offsets[i], tokens + i * LENGTH, (size_t)(LENGTH - 2 * i) * sizeof *ragged);
            offsets[i + 1] = offsets[i] + LENGTH - 2 * i;
        }
        int64_t count = offsets[SEQUENCES];
        float found[2][SEQUENCES * LENGTH];
        lockstep_tensor ids = tensor(ragged, LOCKSTEP_INT32, count, 0);
        lockstep_tensor at = tensor(offsets, LOCKSTEP_INT64, SEQUENCES + 1, 0);
        lockstep_tensor log_prob = tensor(found[0], LOCKSTEP_FLOAT32, count, 0);
        lockstep_tensor entropy = tensor(found[1], LOCKSTEP_FLOAT32, count, 0);
        lockstep_score_options options = LOCKSTEP_SCORE_OPTIONS_INIT;
        options.threads = threads;
        options.instruction_set = set;
        must(lockstep_model_score(&log_prob, &entropy, model, &ids, &at, &options));
        snprintf(name, sizeof name, "score-%s", numbers[kind].name);
        uint32_t digest = digest_of(0, found[0], (size_t)count * sizeof **found);
        subject(name, digest_of(digest, found[1], (size_t)count * sizeof **found));

        lockstep_engine *engine;
        lockstep_engine_options sampling = LOCKSTEP_ENGINE_OPTIONS_INIT;
        lockstep_rollout rollout;
        uint64_t group[SEQUENCES];
        size_t running = 1;
        sampling.max_tokens = RESPONSE;
        sampling.seed = 5;
        sampling.top_p = 0.9375;
        sampling.capacity = 5; /* fewer than run: sequences join as others leave */
        sampling.threads = threads;
        sampling.instruction_set = set;
        for (uint64_t i = 0; i < SEQUENCES; i++) group[i] = i;
        must(lockstep_engine_create(&engine, model, &sampling));
        lockstep_tensor prompt = tensor(tokens, LOCKSTEP_INT32, PROMPT, 0);
        must(lockstep_engine_add(engine, &prompt, group, SEQUENCES));
        while (running > 0) must(lockstep_engine_step(engine, &running, NULL));
        digest = 0;
        for (must(lockstep_engine_take(&rollout, engine, 0)); rollout.token_count >= 0;
             must(lockstep_engine_take(&rollout, engine, 0))) {
            size_t drawn = (size_t)rollout.token_count;
            digest = digest_of(digest, &rollout.id, sizeof rollout.id);
            digest = digest_of(digest, rollout.tokens, drawn * sizeof *rollout.tokens);
            digest = digest_of(digest, rollout.raw_log_probs, drawn * sizeof *rollout.raw_log_probs);
            digest = digest_of(digest, rollout.processed_log_probs, drawn * sizeof *rollout.processed_log_probs);
        }
        snprintf(name, sizeof name, "decode-%s", numbers[kind].name);
        subject(name, digest);
        lockstep_engine_destroy(engine);
        lockstep_model_destroy(model);
    }
}

static void training_step(void) {
    for (int kind = 0; kind < 3; kind++) {
        char name[64];
        lockstep_recipe recipe = {.struct_size = sizeof recipe};
        lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
        lockstep_trainer *trainer;
        int64_t offsets[SEQUENCES + 1];
        double upstream[SEQUENCES * LENGTH];
        float found[SEQUENCES * LENGTH], *masters;
        size_t size;
        for (int i = 0; i <= SEQUENCES; i++) offsets[i] = i * LENGTH;
        for (int i = 0; i < SEQUENCES * LENGTH; i++)
            upstream[i] = i % LENGTH < PROMPT ? 0 : (double)value((uint32_t)i) / 256;
        options.threads = threads;
        options.instruction_set = set;
        must(lockstep_recipe_named(&recipe, numbers[kind].name));
        must(lockstep_trainer_create(&trainer, MODEL, &recipe, &options));
        must(lockstep_trainer_masters(&masters, &size, trainer));
        float *buffers = room(3 * size * sizeof *buffers);
        lockstep_tensor ids = tensor(tokens, LOCKSTEP_INT32, SEQUENCES * LENGTH, 0);
        lockstep_tensor at = tensor(offsets, LOCKSTEP_INT64, SEQUENCES + 1, 0);
        lockstep_tensor log_prob = tensor(found, LOCKSTEP_FLOAT32, SEQUENCES * LENGTH, 0);
        lockstep_tensor wanted = tensor(upstream, LOCKSTEP_FLOAT64, SEQUENCES * LENGTH, 0);
        lockstep_tensor gradients = tensor(buffers, LOCKSTEP_FLOAT32, (int64_t)size, 0);
        lockstep_tensor first = tensor(buffers + size, LOCKSTEP_FLOAT32, (int64_t)size, 0);
        lockstep_tensor second = tensor(buffers + 2 * size, LOCKSTEP_FLOAT32, (int64_t)size, 0);
        must(lockstep_trainer_accumulate(NULL, &log_prob, NULL, trainer, &ids, &at, &wanted, NULL, 1024, 1));
        must(lockstep_trainer_gradients(&gradients, trainer));
        uint32_t digest = digest_of(digest_of(0, found, sizeof found), buffers, size * sizeof *buffers);

        lockstep_gradient_options clipping = LOCKSTEP_GRADIENT_OPTIONS_INIT;
        lockstep_gradient_norm norm;
        lockstep_adamw_options adamw = LOCKSTEP_ADAMW_OPTIONS_INIT;
        clipping.max_norm = 1;
        clipping.threads = adamw.threads = threads;
        clipping.instruction_set = adamw.instruction_set = set;
        must(lockstep_gradients_measure(&norm, &gradients, 1, &clipping));
        adamw.gradient_scale = norm.factor;
        must(lockstep_trainer_masters(&masters, NULL, trainer));
        lockstep_tensor parameters = tensor(masters, LOCKSTEP_FLOAT32, (int64_t)size, 0);
        must(lockstep_adamw_step(&parameters, &first, &second, NULL, &gradients, &adamw));
        snprintf(name, sizeof name, "training-step-%s", numbers[kind].name);
        subject(name, digest_of(digest, masters, size * sizeof *masters));
        free(buffers);
        lockstep_trainer_destroy(trainer);
    }
}

enum { ROLLOUTS = 40, TOKENS_EACH = 500, LOG = ROLLOUTS * TOKENS_EACH };

static void log_of(float *trainer, float *rollout) {
    for (uint32_t i = 0; i < LOG; i++) {
        float half = value(i) + 0.5f;
        rollout[i] = -8 * half * half;
        trainer[i] = rollout[i] + value(LOG + i) / 64;
        if (trainer[i] > 0) trainer[i] = 0;
    }
}

static void accumulators(void) {
    float *trainer = room(LOG * sizeof *trainer), *rollout = room(LOG * sizeof *rollout);
    lockstep_mismatch_accumulator *total;
    lockstep_mismatch_options options = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    size_t size;
    log_of(trainer, rollout);
    options.threads = threads;
    options.instruction_set = set;
    must(lockstep_mismatch_accumulator_create(&total, NULL));
    for (int64_t start = 0, count = 1; start < ROLLOUTS; start += count, count = count * 2 % 11) { /* some cuts */
        if (count > ROLLOUTS - start) count = ROLLOUTS - start;
        int64_t ids[ROLLOUTS];
        for (int64_t i = 0; i < count; i++) ids[i] = start + i;
        lockstep_tensor pi = tensor(trainer + start * TOKENS_EACH, LOCKSTEP_FLOAT32, count, TOKENS_EACH);
        lockstep_tensor mu = tensor(rollout + start * TOKENS_EACH, LOCKSTEP_FLOAT32, count, TOKENS_EACH);
        lockstep_tensor names = tensor(ids, LOCKSTEP_INT64, count, 0);
        must(lockstep_mismatch_accumulator_update(total, &pi, &mu, NULL, NULL, &names, &options));
    }
    must(lockstep_mismatch_accumulator_save(NULL, &size, total));
    unsigned char *bytes = room(size);
    must(lockstep_mismatch_accumulator_save(bytes, &size, total));
    subject("accumulator", digest_of(0, bytes, size));
    free(bytes);
    lockstep_mismatch_accumulator_destroy(total);
    free(trainer);
    free(rollout);
}

static void corrections_and_objectives(void) {
    float *trainer = room(LOG * sizeof *trainer), *rollout = room(LOG * sizeof *rollout);
    float *weights = room(LOG * sizeof *weights);
    float *current = room(LOG * sizeof *current);
    double advantages[ROLLOUTS];
    log_of(trainer, rollout);
    for (uint32_t i = 0; i < LOG; i++) current[i] = trainer[i] + value(2 * LOG + i);
    for (uint32_t i = 0; i < ROLLOUTS; i++) advantages[i] = value(3 * LOG + i);
    lockstep_tensor pi = tensor(trainer, LOCKSTEP_FLOAT32, ROLLOUTS, TOKENS_EACH);
    lockstep_tensor mu = tensor(rollout, LOCKSTEP_FLOAT32, ROLLOUTS, TOKENS_EACH);
    lockstep_tensor now = tensor(current, LOCKSTEP_FLOAT32, ROLLOUTS, TOKENS_EACH);
    lockstep_tensor each = tensor(advantages, LOCKSTEP_FLOAT64, ROLLOUTS, 0);
    lockstep_tensor out = tensor(weights, LOCKSTEP_FLOAT32, ROLLOUTS, TOKENS_EACH);

    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = &pi;
    batch.rollout_log_probs = &mu;
    lockstep_correction_options correction = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    correction.high = 1.001;
    correction.threads = threads;
    correction.instruction_set = set;
    must(lockstep_correct(&out, NULL, NULL, NULL, &batch, &correction));
    subject("correction", digest_of(0, weights, LOG * sizeof *weights));

    lockstep_batch update = LOCKSTEP_BATCH_INIT;
    update.current_log_probs = &now;
    update.trainer_log_probs = &pi;
    update.reference_log_probs = &mu;
    update.advantages = &each;
    lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    lockstep_objective_report report = {.struct_size = sizeof report};
    objective.term = LOCKSTEP_TERM_CLIP;
    objective.high = 1.28;
    objective.aggregation = LOCKSTEP_SEQ_MEAN_TOKEN_MEAN;
    objective.kl = LOCKSTEP_KL_K3;
    objective.kl_coefficient = 0.0625;
    objective.threads = threads;
    objective.instruction_set = set;
    must(lockstep_objective_loss(&report, &out, NULL, &update, &objective));
    subject("objective", digest_of(digest_of(0, &report.loss, sizeof report.loss), weights, LOG * sizeof *weights));
    free(trainer);
    free(rollout);
    free(weights);
    free(current);
}

static void every_subject(void) {
    formats();
    log_probs();
    linear_log_probs();
    scoring_and_decoding();
    training_step();
    accumulators();
    corrections_and_objectives();
}

/* NULL and 0: all there are. */
static const char *wanted_set;
static int32_t wanted_threads;

static void every_set_and_thread_count(void) {
    for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) {
        set = sets[i].set;
        if (!lockstep_has_instruction_set(set) || (wanted_set && strcmp(wanted_set, sets[i].name) != 0)) continue;
        for (size_t j = 0; j < sizeof thread_counts / sizeof *thread_counts; j++) {
            threads = thread_counts[j];
            if (wanted_threads == 0 || wanted_threads == threads) every_subject();
        }
    }
}

int main(int count, char **arguments) {
    printing = count > 1;
    if (count > 2) wanted_set = arguments[2];
    if (count > 3) wanted_threads = atoi(arguments[3]);
    demonstrations();
    if (printing) return every_set_and_thread_count(), 0;
    TEST(every_set_and_thread_count);
    return test_report();
}

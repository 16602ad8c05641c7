/* A model, its engine, its localiser, its trainer, its dump and its audit, of any arguments and in any order of calls. */
#include "call.h"

#include <unistd.h>

#define WORDS "log_probs entropy logits model tokens offsets options report prompt ids count engine localiser recipe trainer rollout " \
    "ranges d_ loss_scale audit gradients swap layer parameters activations cache probabilities order targets adapter path"

enum { VOCAB = 16 };

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

static lockstep_model *models[3];

static void prepare(void) {
    static const char *const names[] = {"fp32", "bf16+flash", "fp16-fp8cache"};
    for (int i = 0; i < 3 && models[i] == NULL; i++) {
        lockstep_recipe recipe;
        memset(&recipe, 0, sizeof recipe);
        recipe.struct_size = sizeof recipe;
        FUZZ_CHECK(lockstep_recipe_named(&recipe, names[i]) == LOCKSTEP_OK);
        FUZZ_CHECK(lockstep_model_load(&models[i], TINY, NULL, &recipe) == LOCKSTEP_OK);
    }
}

/* Ids of up to three sequences; returns how many ids. */
static int64_t some_tokens(fuzz_call *c, int optional, const lockstep_tensor **tokens, const lockstep_tensor **offsets) {
    int64_t sequences = fuzz_pick(&c->bytes, 0, 3), count = fuzz_pick(&c->bytes, 0, 20);
    *tokens = fuzz_vector(c, optional, FUZZ_INTEGERS, count, FUZZ_COUNTS, VOCAB);
    *offsets = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_INT64, sequences + 1, FUZZ_OFFSETS, count);
    return count;
}

static void score(fuzz_call *c, const lockstep_model *model) {
    lockstep_score_options usual = LOCKSTEP_SCORE_OPTIONS_INIT;
    usual.threads = 1;
    int which = (int)fuzz_pick(&c->bytes, 0, 2);
    const lockstep_tensor *tokens, *offsets;
    int64_t count = some_tokens(c, FUZZ_REQUIRED, &tokens, &offsets);
    const lockstep_tensor *log_probs = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, count, FUZZ_NOTHING, 0);
    const lockstep_tensor *entropy = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, count, FUZZ_NOTHING, 0);
    const lockstep_tensor *logits = fuzz_matrix(c, FUZZ_REQUIRED, FUZZ_FLOAT32, count, VOCAB, FUZZ_NOTHING, 0);
    lockstep_score_report *report = fuzz_result(c, sizeof *report, FUZZ_REQUIRED);
    const lockstep_score_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    fuzz_ready(c);
    lockstep_status status =
        which == 0   ? lockstep_model_score(log_probs, entropy, model, tokens, offsets, options)
        : which == 1 ? lockstep_model_score_counting(report, log_probs, entropy, model, tokens, offsets, options)
                     : lockstep_model_logits(logits, model, tokens, offsets, options);
    if (fuzz_end(c, status, WORDS) == LOCKSTEP_OK && which == 0 && !c->is_shared)
        for (int64_t i = 0; i < count; i++) FUZZ_CHECK(fuzz_at(log_probs, i, 0) <= 0);
}

static void sample(fuzz_call *c, const lockstep_model *model) {
    static const size_t pointers[] = {offsetof(lockstep_engine_options, stop_ids),
                                      offsetof(lockstep_engine_options, max_tokens), 0, 0};
    lockstep_engine_options usual = LOCKSTEP_ENGINE_OPTIONS_INIT;
    lockstep_engine *engine = NULL;
    usual.threads = 1;
    usual.max_tokens = fuzz_pick(&c->bytes, 1, 6);
    int32_t *stop_ids = fuzz_memory(c, 8, 0);
    stop_ids[0] = (int32_t)fuzz_pick(&c->bytes, 0, 20);
    stop_ids[1] = fuzz_u8(&c->bytes) > 250 ? (int32_t)fuzz_integer(&c->bytes) : 3;
    usual.stop_ids = fuzz_u8(&c->bytes) > 250 ? NULL : stop_ids;
    usual.stop_id_count = (size_t)fuzz_pick(&c->bytes, 0, 2);
    const lockstep_engine_options *options = fuzz_options(c, &usual, sizeof usual, pointers);
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_engine_create(&engine, model, options), WORDS) != LOCKSTEP_OK) {
        FUZZ_CHECK(engine == NULL);
        return;
    }
    int64_t added = 0, taken = 0;
    for (int i = 0; i < 24; i++) {
        size_t running = 0, finished = 0;
        lockstep_rollout rollout;
        lockstep_status status;
        switch (fuzz_u8(&c->bytes) % 8) {
        case 0: case 1: {
            uint64_t ids[3];
            size_t count = (size_t)fuzz_pick(&c->bytes, 0, 3);
            for (int k = 0; k < 3; k++) ids[k] = fuzz_u8(&c->bytes);
            if (c->tensor_count >= FUZZ_CALL_TENSORS) break;
            const lockstep_tensor *prompt = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INTEGERS, fuzz_pick(&c->bytes, 0, 70), FUZZ_COUNTS, VOCAB);
            fuzz_ready(c);
            if (fuzz_end(c, lockstep_engine_add(engine, prompt, ids, count), WORDS) == LOCKSTEP_OK) added += (int64_t)count;
            break;
        }
        case 2:
            memset(&rollout, 0xa5, sizeof rollout);
            status = FUZZ_STATUS(lockstep_engine_take(&rollout, engine, (int32_t)fuzz_pick(&c->bytes, 0, 2)), WORDS " unfinished");
            if (status == LOCKSTEP_OK && rollout.token_count >= 0) {
                taken++;
                for (int64_t k = 0; k < rollout.token_count; k++) {
                    FUZZ_CHECK(rollout.tokens[k] >= 0 && rollout.tokens[k] < VOCAB);
                    FUZZ_CHECK(rollout.raw_log_probs[k] <= 0 && rollout.processed_log_probs[k] <= 0);
                    FUZZ_CHECK(rollout.kept_mass[k] > 0 && rollout.kept_mass[k] <= 1.0000001);
                }
            }
            break;
        default:
            if (FUZZ_STATUS(lockstep_engine_step(engine, &running, &finished), WORDS) == LOCKSTEP_OK)
                FUZZ_CHECK((int64_t)(running + finished) + taken == added);
        }
    }
    lockstep_engine_destroy(engine);
}

static void locate(fuzz_call *c) {
    static const size_t pointers[] = {offsetof(lockstep_localiser_options, reference), sizeof(lockstep_localiser_options), 0, 0};
    lockstep_localiser_options usual = LOCKSTEP_LOCALISER_OPTIONS_INIT;
    lockstep_localiser *localiser = NULL;
    int64_t sequences = fuzz_pick(&c->bytes, 0, 3), count = fuzz_pick(&c->bytes, 0, 20);
    int32_t *ranges = fuzz_memory(c, 8, 0);
    ranges[0] = fuzz_u8(&c->bytes) > 200 ? (int32_t)fuzz_integer(&c->bytes) : 0;
    ranges[1] = fuzz_u8(&c->bytes) > 200 ? (int32_t)fuzz_integer(&c->bytes) : 1;
    usual.threads = 1;
    usual.ranges = ranges;
    usual.range_count = (size_t)fuzz_pick(&c->bytes, 0, 1);
    usual.reference = fuzz_u8(&c->bytes) & 1 ? models[0] : NULL;
    const lockstep_tensor *tokens = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INTEGERS, count, FUZZ_COUNTS, VOCAB);
    const lockstep_tensor *offsets = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_INT64, sequences + 1, FUZZ_OFFSETS, count);
    const lockstep_localiser_options *options = fuzz_options(c, &usual, sizeof usual, pointers);
    const lockstep_model *one = models[fuzz_pick(&c->bytes, 0, 2)], *other = models[fuzz_pick(&c->bytes, 0, 2)];
    fuzz_ready(c);
    lockstep_status status = lockstep_localiser_create(&localiser, one, other, tokens, offsets, options);
    if (fuzz_end(c, status, WORDS) != LOCKSTEP_OK) {
        FUZZ_CHECK(localiser == NULL);
        return;
    }
    const lockstep_tensor *trainer = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, count, FUZZ_NOTHING, 0);
    const lockstep_tensor *rollout = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, count, FUZZ_NOTHING, 0);
    fuzz_ready(c);
    for (int i = 0; i < 12; i++) {
        size_t done = 0, total = 0, rows = 0;
        lockstep_difference row;
        memset(&row, 0, sizeof row);
        row.struct_size = sizeof row;
        if (fuzz_u8(&c->bytes) > 200) {
            int32_t swap = fuzz_u8(&c->bytes) > 250 ? (int32_t)fuzz_integer(&c->bytes) : (int32_t)fuzz_pick(&c->bytes, 0, 7);
            fuzz_ready(c);
            fuzz_end(c, lockstep_localiser_log_probs(trainer, rollout, localiser, swap), WORDS " step");
        }
        if (FUZZ_STATUS(lockstep_localiser_step(localiser, &done, &total), WORDS) != LOCKSTEP_OK) break;
        FUZZ_CHECK(done <= total);
        FUZZ_CHECK(lockstep_localiser_read(NULL, &rows, localiser, 0) == LOCKSTEP_OK);
        for (size_t k = 0; k < rows; k++) {
            FUZZ_CHECK(lockstep_localiser_read(&row, NULL, localiser, k) == LOCKSTEP_OK);
            FUZZ_CHECK(row.differing <= row.rows * row.columns && (one != other || row.differing == 0));
        }
        FUZZ_STATUS(lockstep_localiser_read(&row, NULL, localiser, rows), "index row");
    }
    lockstep_localiser_destroy(localiser);
}

static void train(fuzz_call *c) {
    static const size_t pointers[] = {offsetof(lockstep_trainer_options, adapter), offsetof(lockstep_trainer_options, rank),
                                      offsetof(lockstep_trainer_options, targets), offsetof(lockstep_trainer_options, seed), 0, 0};
    lockstep_trainer_options usual = LOCKSTEP_TRAINER_OPTIONS_INIT;
    lockstep_trainer *trainer = NULL;
    lockstep_recipe recipe;
    usual.threads = 1;
    if (fuzz_u8(&c->bytes) & 1) {
        usual.rank = fuzz_pick(&c->bytes, 1, 2);
        usual.alpha = 1;
    }
    memset(&recipe, 0, sizeof recipe);
    recipe.struct_size = sizeof recipe;
    FUZZ_CHECK(lockstep_recipe_named(&recipe, fuzz_u8(&c->bytes) & 1 ? "fp16" : "fp32") == LOCKSTEP_OK);
    const lockstep_recipe *given = fuzz_options(c, &recipe, sizeof recipe, NULL);
    const lockstep_trainer_options *options = fuzz_options(c, &usual, sizeof usual, pointers);
    if (fuzz_is_whole(options, sizeof *options) && (options->rank > 1 << 12 || options->rank < -1)) return; /* gigabytes */
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_trainer_create(&trainer, TINY, given, options), WORDS) != LOCKSTEP_OK) {
        FUZZ_CHECK(trainer == NULL);
        return;
    }
    size_t elements = 0, tensors = 0;
    FUZZ_CHECK(lockstep_trainer_parameter(NULL, &tensors, &elements, trainer, 0) == LOCKSTEP_OK && elements > 0);
    for (int i = 0; i < 4; i++) {
        int64_t sequences = fuzz_pick(&c->bytes, 0, 2), count = fuzz_pick(&c->bytes, 0, 12);
        const lockstep_tensor *tokens = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INTEGERS, count, FUZZ_COUNTS, VOCAB);
        const lockstep_tensor *offsets = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_INT64, sequences + 1, FUZZ_OFFSETS, count);
        const lockstep_tensor *d_log_probs = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, count, FUZZ_NUMBERS, 0);
        const lockstep_tensor *d_entropy = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, count, FUZZ_NUMBERS, 0);
        const lockstep_tensor *log_probs = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, count, FUZZ_NOTHING, 0);
        const lockstep_tensor *gradients = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOAT32, (int64_t)elements, FUZZ_NOTHING, 0);
        lockstep_backward_report *report = fuzz_result(c, sizeof *report, FUZZ_OPTIONAL);
        double loss_scale = fuzz_u8(&c->bytes) > 200 ? fuzz_double(&c->bytes) : 1024;
        double temperature = fuzz_u8(&c->bytes) > 200 ? fuzz_double(&c->bytes) : 1;
        fuzz_ready(c);
        lockstep_status status = lockstep_trainer_accumulate(report, log_probs, NULL, trainer, tokens, offsets, d_log_probs,
                                                             d_entropy, loss_scale, temperature);
        fuzz_end(c, status, WORDS);
        fuzz_ready(c);
        fuzz_end(c, lockstep_trainer_gradients(gradients, trainer), WORDS);
        if (fuzz_u8(&c->bytes) & 1) FUZZ_CHECK(lockstep_trainer_clear(trainer) == LOCKSTEP_OK);
        if (fuzz_u8(&c->bytes) > 200) {
            float *masters;
            size_t number;
            lockstep_model *model = NULL;
            FUZZ_CHECK(lockstep_trainer_masters(&masters, &number, trainer) == LOCKSTEP_OK && number == elements);
            masters[fuzz_u8(&c->bytes) % number] = (float)fuzz_double(&c->bytes);
            if (FUZZ_STATUS(lockstep_trainer_snapshot(&model, trainer), "tensor weight") == LOCKSTEP_OK)
                lockstep_model_destroy(model);
        }
    }
    lockstep_trainer_destroy(trainer);
}

/* A path as it should be, or one of some that cannot be. */
static const char *path_of(fuzz_call *c, const char *right) {
    uint8_t way = fuzz_u8(&c->bytes);
    return way < 240 ? right : way < 244 ? NULL : way < 248 ? "" : way < 252 ? "/nowhere/at/all" : TINY "/config.json";
}

static void dump(fuzz_call *c, const lockstep_model *model) {
    lockstep_score_options usual = LOCKSTEP_SCORE_OPTIONS_INIT;
    char file[300];
    snprintf(file, sizeof file, "%s/dump.safetensors", fuzz_folder());
    usual.threads = 1;
    const lockstep_tensor *tokens, *offsets;
    some_tokens(c, FUZZ_REQUIRED, &tokens, &offsets);
    const lockstep_score_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    const char *path = path_of(c, file);
    fuzz_ready(c);
    if (fuzz_end(c, lockstep_model_dump(path, model, tokens, offsets, options), WORDS " safetensors config") != LOCKSTEP_OK) {
        FUZZ_CHECK(access(file, F_OK) != 0);
        return;
    }
    /* Another does not take its place; and it is what a reader takes for a safetensors file. */
    lockstep_status again = lockstep_model_dump(file, model, tokens, offsets, options);
    FUZZ_CHECK(FUZZ_STATUS(again, "dump.safetensors") == LOCKSTEP_ERROR_FILE);
    uint8_t head[9];
    FILE *dumped = fopen(file, "rb");
    FUZZ_CHECK(dumped != NULL && fread(head, 1, sizeof head, dumped) == sizeof head && head[8] == '{');
    FUZZ_CHECK(fseek(dumped, 0, SEEK_END) == 0 && (uint64_t)ftell(dumped) >= 8 + fuzz_get(head, 8));
    fclose(dumped);
    FUZZ_CHECK(unlink(file) == 0);
}

static void audit(fuzz_call *c) {
    lockstep_score_options usual = LOCKSTEP_SCORE_OPTIONS_INIT;
    lockstep_audit *made = NULL;
    usual.threads = 1;
    const lockstep_tensor *tokens, *offsets;
    some_tokens(c, FUZZ_OPTIONAL, &tokens, &offsets);
    const lockstep_score_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    const char *path = path_of(c, TINY);
    int is_backward = fuzz_u8(&c->bytes) < 192;
    double loss_scale = fuzz_u8(&c->bytes) > 128 ? fuzz_double(&c->bytes) : 1024;
    fuzz_ready(c);
    lockstep_status status = is_backward ? lockstep_audit_create_backward(&made, path, tokens, offsets, loss_scale, options)
                                         : lockstep_audit_create(&made, path, tokens, offsets, options);
    if (fuzz_end(c, status, WORDS " nowhere config") != LOCKSTEP_OK) {
        FUZZ_CHECK(made == NULL);
        return;
    }
    size_t rows = 0, gradients = 0;
    FUZZ_CHECK(lockstep_audit_read(NULL, &rows, made, 0) == LOCKSTEP_OK && rows > 0);
    for (size_t i = 0; i < rows; i++) {
        lockstep_headroom row;
        FUZZ_CHECK(lockstep_audit_read(&row, NULL, made, i) == LOCKSTEP_OK && row.name != NULL);
        FUZZ_CHECK(row.subnormal + row.overflowing + row.non_finite <= row.count && row.vanishing <= row.subnormal);
        gradients += row.kind >= LOCKSTEP_HEADROOM_GRADIENT;
    }
    FUZZ_CHECK((gradients > 0) == is_backward);
    FUZZ_STATUS(lockstep_audit_read(&(lockstep_headroom){0}, NULL, made, rows), "index");
    lockstep_audit_destroy(made);
}

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    prepare();
    fuzz_begin(&c, data, size);
    uint8_t what = fuzz_u8(&c.bytes);
    switch (what < 224 ? what % 4 : 4 + what % 2) {
    case 4: dump(&c, models[fuzz_pick(&c.bytes, 0, 2)]); break;
    case 5: audit(&c); break;
    case 0: score(&c, models[fuzz_pick(&c.bytes, 0, 2)]); break;
    case 1: sample(&c, models[fuzz_pick(&c.bytes, 0, 2)]); break;
    case 2: locate(&c); break;
    default: train(&c);
    }
    fuzz_free(&c);
}

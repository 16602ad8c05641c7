/* Section 9 from C: a model is loaded, scored and sampled from with the same bits, and every misuse is refused
 * by name. */
#include "arguments.h"

#include <math.h>
#include <stddef.h>

#define FOLDER ROOT "/Tests/Vectors/models/llama_untied"

enum { TOKENS = 7, SEQUENCES = 2, VOCAB = 97 };

static lockstep_model *shared_model;

typedef struct {
    lockstep_recipe recipe;
    lockstep_score_options score_options;
    lockstep_engine_options engine_options;
    argument log_probs, entropy, logits, tokens, offsets;
    int32_t token_data[TOKENS], stop_ids[1];
    int64_t offset_data[SEQUENCES + 1];
    const char *path, *adapter, *name;
    const lockstep_model *model;
    uint32_t info_size;
    struct {
        double log_probs[TOKENS], entropy[TOKENS];
        float logits[TOKENS * VOCAB];
        int32_t matches;
        size_t length;
        char text[32];
        lockstep_model *model;
        lockstep_engine *engine;
        unsigned char recipe[sizeof(lockstep_recipe)], info[sizeof(lockstep_model_info)];
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const int32_t ids[TOKENS] = {5, 9, 96, 0, 3, 3, 3};
    lockstep_score_options score_options = LOCKSTEP_SCORE_OPTIONS_INIT;
    lockstep_engine_options engine_options = LOCKSTEP_ENGINE_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    memcpy(f->token_data, ids, sizeof ids);
    f->offset_data[1] = 4;
    f->offset_data[2] = TOKENS;
    argument_init(&f->log_probs, f->outputs.log_probs, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->entropy, f->outputs.entropy, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->logits, f->outputs.logits, LOCKSTEP_FLOAT32, TOKENS, VOCAB);
    argument_init(&f->tokens, f->token_data, LOCKSTEP_INT32, TOKENS, 0);
    argument_init(&f->offsets, f->offset_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    f->score_options = score_options;
    f->engine_options = engine_options;
    f->engine_options.max_tokens = 4;
    f->engine_options.threads = f->score_options.threads = 1;
    f->recipe.struct_size = sizeof f->recipe;
    f->recipe.parameters = f->recipe.activations = f->recipe.cache = f->recipe.probabilities = f->recipe.logits =
        LOCKSTEP_FLOAT16;
    f->path = FOLDER;
    f->name = "fp16";
    f->model = shared_model;
    f->info_size = sizeof(lockstep_model_info);
}

static lockstep_status recipe_named(fixture *f) {
    lockstep_recipe recipe;
    memset(&recipe, TEST_CANARY, sizeof recipe);
    recipe.struct_size = f->info_size == 0 ? 0 : (uint32_t)sizeof recipe;
    lockstep_status status = lockstep_recipe_named(&recipe, f->name);
    if (status == LOCKSTEP_OK) memcpy(f->outputs.recipe, &recipe, sizeof recipe);
    return status;
}

static lockstep_status load(fixture *f) {
    lockstep_model *model = NULL;
    lockstep_status status = lockstep_model_load(&model, f->path, f->adapter, &f->recipe);
    if (status == LOCKSTEP_OK) lockstep_model_destroy(model);
    else CHECK(model == NULL);
    return status;
}

static lockstep_status get_info(fixture *f) {
    lockstep_model_info info;
    memset(&info, TEST_CANARY, sizeof info);
    info.struct_size = f->info_size;
    lockstep_status status = lockstep_model_get_info(&info, f->model);
    if (status == LOCKSTEP_OK) memcpy(f->outputs.info, &info, sizeof info);
    return status;
}

static lockstep_status score(fixture *f) {
    return lockstep_model_score(given(&f->log_probs), given(&f->entropy), f->model, given(&f->tokens),
                                given(&f->offsets), &f->score_options);
}

static lockstep_status score_counting(fixture *f) {
    lockstep_score_report report;
    memset(&report, TEST_CANARY, sizeof report);
    report.struct_size = f->info_size == 0 ? 0 : (uint32_t)sizeof report;
    return lockstep_model_score_counting(&report, given(&f->log_probs), given(&f->entropy), f->model,
                                         given(&f->tokens), given(&f->offsets), &f->score_options);
}

static lockstep_status logits(fixture *f) {
    return lockstep_model_logits(given(&f->logits), f->model, given(&f->tokens), given(&f->offsets),
                                 &f->score_options);
}

static lockstep_status recipe_text(fixture *f) {
    return lockstep_recipe_text(f->outputs.text, sizeof f->outputs.text, &f->outputs.length, &f->recipe);
}

static lockstep_status recipe_matches(fixture *f) {
    return lockstep_recipe_matches(&f->outputs.matches, NULL, &f->recipe);
}

static lockstep_status engine(fixture *f) {
    lockstep_engine *engine = NULL;
    lockstep_status status = lockstep_engine_create(&engine, f->model, &f->engine_options);
    if (status == LOCKSTEP_OK) lockstep_engine_destroy(engine);
    else CHECK(engine == NULL);
    return status;
}

/* An engine of the fixture's options that is given the first sequence as a prompt. */
static lockstep_status add(fixture *f) {
    static const uint64_t ids[3] = {7, 8, 1u << 31};
    lockstep_engine *engine;
    lockstep_status status = lockstep_engine_create(&engine, f->model, &f->engine_options);
    if (status != LOCKSTEP_OK) return status;
    status = lockstep_engine_add(engine, given(&f->tokens), ids, 3);
    lockstep_engine_destroy(engine);
    return status;
}

static void a_model_says_what_it_is(void) {
    lockstep_model_info info = {.struct_size = sizeof info};
    CHECK_OK(lockstep_model_get_info(&info, shared_model));
    CHECK(info.layers == 2 && info.vocab == VOCAB && info.hidden_size == 64 && info.positions == 128);
    CHECK(strcmp(info.family, "llama") == 0 && info.parameters > 50000 && info.parameters < 60000);
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16-fp32head"));
    CHECK(recipe.parameters == LOCKSTEP_BFLOAT16 && recipe.cache == LOCKSTEP_BFLOAT16);
    CHECK(recipe.logits == LOCKSTEP_FLOAT32);
    CHECK_OK(lockstep_recipe_named(&recipe, "e5m3-fp32head"));
    CHECK(recipe.parameters == LOCKSTEP_E5M + 3 && recipe.logits == LOCKSTEP_FLOAT32);
    CHECK_OK(lockstep_recipe_named(&recipe, "e8m23"));
    CHECK(recipe.cache == LOCKSTEP_E8M + 23);
    lockstep_model_destroy(NULL);
    lockstep_engine_destroy(NULL);
}

static void recipes_have_an_order(void) {
    lockstep_recipe recipe = {.struct_size = sizeof recipe}, other = {.struct_size = sizeof other};
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16"));
    CHECK(recipe.order == LOCKSTEP_ORDER_LOCKSTEP);
    CHECK_OK(lockstep_recipe_named(&other, "bf16+fused"));
    CHECK(other.order == LOCKSTEP_ORDER_FUSED && other.cache == LOCKSTEP_BFLOAT16);
    int32_t matches = 7;
    CHECK_OK(lockstep_recipe_matches(&matches, &recipe, &other));
    CHECK(matches == 0);
    other.order = LOCKSTEP_ORDER_LOCKSTEP;
    CHECK_OK(lockstep_recipe_matches(&matches, &recipe, &other));
    CHECK(matches == 1);
    CHECK_OK(lockstep_recipe_matches(&matches, NULL, &other));
    CHECK(matches == 0);

    char text[11];
    size_t length;
    recipe.order = LOCKSTEP_ORDER_EAGER;
    CHECK_OK(lockstep_recipe_text(NULL, 0, &length, &recipe));
    CHECK(length == 10);
    memset(text, TEST_CANARY, sizeof text);
    CHECK_OK(lockstep_recipe_text(text, 10, &length, &recipe));
    CHECK(text[0] == (char)TEST_CANARY && length == 10);
    CHECK_OK(lockstep_recipe_text(text, 11, NULL, &recipe));
    CHECK(strcmp(text, "bf16+eager") == 0);
    CHECK_OK(lockstep_recipe_text(text, 11, NULL, NULL));
    CHECK(strcmp(text, "fp32") == 0);

    /* A program built with the struct as it was before it had an order. */
    recipe.order = 77;
    recipe.struct_size = offsetof(lockstep_recipe, order);
    CHECK_OK(lockstep_recipe_matches(&matches, &recipe, &other));
    CHECK(matches == 1);
    CHECK_OK(lockstep_recipe_named(&recipe, "fp16"));
    CHECK(recipe.order == 77 && recipe.logits == LOCKSTEP_FLOAT16);
    test_refused(__FILE__, __LINE__, "an order without room", lockstep_recipe_named(&recipe, "bf16+eager"),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "struct_size is 24", "", 0);
}

/* Where nothing overflows, counting is scoring. */
static void counting_has_the_bits_of_scoring(void) {
    fixture f, counted;
    fixture_init(&f);
    fixture_init(&counted);
    CHECK_OK(score(&f));
    lockstep_score_report report;
    memset(&report, TEST_CANARY, sizeof report);
    report.struct_size = sizeof report;
    CHECK_OK(lockstep_model_score_counting(&report, &counted.log_probs.tensor, &counted.entropy.tensor,
                                           counted.model, &counted.tokens.tensor, &counted.offsets.tensor,
                                           &counted.score_options));
    CHECK(memcmp(f.outputs.log_probs, counted.outputs.log_probs, sizeof f.outputs.log_probs) == 0);
    CHECK(report.overflows == 0 && report.overflow_tokens == 0 && report.overflow_sequence == -1);
    CHECK(report.sequences == 2 && report.overflow_layer == -1 && report.overflow_operation[0] == 0);
}

/* Of the recipes with fp8, and what a trainer says of them. */
static void fp8_is_for_rollout_engines(void) {
    lockstep_recipe recipe;
    recipe.struct_size = sizeof recipe;
    lockstep_model *model = NULL;
    lockstep_trainer *trainer = NULL;
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16-fp8weights-fp8cache"));
    CHECK(recipe.parameters == LOCKSTEP_FLOAT8_E4M3FN && recipe.cache == LOCKSTEP_FLOAT8_E4M3FN);
    CHECK(recipe.activations == LOCKSTEP_BFLOAT16 && recipe.logits == LOCKSTEP_BFLOAT16);
    recipe.cache = LOCKSTEP_FLOAT8_E5M2;
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, &recipe));
    lockstep_model_destroy(model);
    CHECK(lockstep_trainer_create(&trainer, FOLDER, &recipe, NULL) == LOCKSTEP_ERROR_UNSUPPORTED);
    CHECK(trainer == NULL && strstr(lockstep_last_error(), "rollout engine") != NULL);
}

static void count_loading(void *context, int64_t done, int64_t total) {
    int64_t *seen = context;
    CHECK(done > seen[0] && done <= total);
    seen[0] = done;
    seen[1] = total;
}

/* Loading is told to the thread that asked, until it says that it wants no more. */
static void loading_is_told(void) {
    int64_t seen[2] = {0, 0};
    lockstep_model *model;
    lockstep_observe_loading(count_loading, seen);
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, NULL));
    lockstep_model_info info;
    info.struct_size = sizeof info;
    CHECK_OK(lockstep_model_get_info(&info, model));
    lockstep_model_destroy(model);
    CHECK(seen[0] == info.parameters && seen[1] == info.parameters);
    lockstep_observe_loading(NULL, NULL);
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, NULL));
    lockstep_model_destroy(model);
    CHECK(seen[0] == info.parameters);
}

/* An audit has the gradients too, at a loss scale. */
static void audits_look_at_gradients(void) {
    int32_t ids[4] = {1, 2, 3, 4};
    int64_t shape[1] = {4};
    lockstep_tensor tokens = lockstep_tensor_of(ids, LOCKSTEP_INT32, 1, shape);
    lockstep_audit *one, *other;
    size_t count;
    CHECK_OK(lockstep_audit_create_backward(&one, FOLDER, &tokens, NULL, 1, NULL));
    CHECK_OK(lockstep_audit_create_backward(&other, FOLDER, &tokens, NULL, 8, NULL));
    CHECK_OK(lockstep_audit_read(NULL, &count, one, 0));
    int kinds[4] = {0};
    for (size_t i = 0; i < count; i++) {
        lockstep_headroom row, scaled;
        CHECK_OK(lockstep_audit_read(&row, NULL, one, i));
        CHECK_OK(lockstep_audit_read(&scaled, NULL, other, i));
        kinds[row.kind]++;
        CHECK(strcmp(row.name, scaled.name) == 0 && row.count == scaled.count);
        CHECK(scaled.largest == row.largest * (row.kind >= LOCKSTEP_HEADROOM_GRADIENT ? 8 : 1));
    }
    CHECK(kinds[LOCKSTEP_HEADROOM_WEIGHT] == kinds[LOCKSTEP_HEADROOM_WEIGHT_GRADIENT]);
    CHECK(kinds[LOCKSTEP_HEADROOM_WEIGHT] > 10 && kinds[LOCKSTEP_HEADROOM_GRADIENT] > 20);
    lockstep_audit_destroy(one);
    lockstep_audit_destroy(other);
    one = NULL;
    CHECK(lockstep_audit_create_backward(&one, FOLDER, NULL, NULL, 1, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(strstr(lockstep_last_error(), "tokens") != NULL);
    CHECK(lockstep_audit_create_backward(&one, FOLDER, &tokens, NULL, 0, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(one == NULL && strstr(lockstep_last_error(), "loss_scale") != NULL);
}

/* Logits are what scoring takes its log-probs from. */
static void logits_give_the_log_probs_of_scoring(void) {
    fixture f;
    fixture_init(&f);
    CHECK_OK(score(&f));
    CHECK_OK(logits(&f));
    int64_t matrix[2] = {TOKENS, VOCAB}, vector[1] = {TOKENS};
    int32_t targets[TOKENS] = {9, 96, 0, -100, 3, 3, -100};
    double found[TOKENS];
    lockstep_tensor x = lockstep_tensor_of(f.outputs.logits, LOCKSTEP_FLOAT32, 2, matrix);
    lockstep_tensor y = lockstep_tensor_of(targets, LOCKSTEP_INT32, 1, vector);
    lockstep_tensor out = lockstep_tensor_of(found, LOCKSTEP_FLOAT64, 1, vector);
    CHECK_OK(lockstep_log_probs(&out, NULL, NULL, NULL, &x, &y, NULL));
    for (int i = 0; i + 1 < TOKENS; i++)
        if (targets[i] >= 0) CHECK(found[i] == f.outputs.log_probs[i + 1] && found[i] < 0);
}

/* The proof from C: what the engine says of its tokens is what scoring says of them. */
static void the_engine_has_the_bits_of_scoring(void) {
    fixture f;
    fixture_init(&f);
    lockstep_engine *engine;
    f.engine_options.max_tokens = 9;
    f.engine_options.seed = 11;
    f.stop_ids[0] = 3;
    f.engine_options.stop_ids = f.stop_ids;
    f.engine_options.stop_id_count = 1;
    CHECK_OK(lockstep_engine_create(&engine, shared_model, &f.engine_options));
    static const uint64_t ids[5] = {0, 1, 2, UINT64_MAX, 4};
    int64_t shape[1] = {TOKENS};
    lockstep_tensor prompt = lockstep_tensor_of(f.token_data, LOCKSTEP_INT32, 1, shape);
    CHECK_OK(lockstep_engine_add(engine, &prompt, ids, 5));
    CHECK_OK(lockstep_engine_add(engine, &prompt, NULL, 0));
    size_t running = 5, finished = 0, taken = 0;
    while (running > 0) {
        CHECK_OK(lockstep_engine_step(engine, &running, &finished));
        CHECK(running + finished + taken == 5);
        lockstep_rollout rollout;
        for (;;) {
            CHECK_OK(lockstep_engine_take(&rollout, engine, 0));
            if (rollout.token_count < 0) break;
            taken++;
            CHECK(rollout.token_count >= 1 && rollout.token_count <= 9);
            int32_t last = rollout.tokens[rollout.token_count - 1];
            CHECK(rollout.finish == (last == 3 ? LOCKSTEP_FINISH_STOP : LOCKSTEP_FINISH_LENGTH));
            int32_t whole[TOKENS + 9];
            double found[TOKENS + 9];
            memcpy(whole, f.token_data, sizeof f.token_data);
            memcpy(whole + TOKENS, rollout.tokens, (size_t)rollout.token_count * sizeof(int32_t));
            int64_t length[1] = {TOKENS + rollout.token_count};
            lockstep_tensor tokens = lockstep_tensor_of(whole, LOCKSTEP_INT32, 1, length);
            lockstep_tensor out = lockstep_tensor_of(found, LOCKSTEP_FLOAT64, 1, length);
            CHECK_OK(lockstep_model_score(&out, NULL, shared_model, &tokens, NULL, NULL));
            CHECK(memcmp(found + TOKENS, rollout.raw_log_probs, (size_t)rollout.token_count * sizeof(double)) == 0);
            CHECK(rollout.kept_mass[0] == 1 && rollout.processed_log_probs[0] == rollout.raw_log_probs[0]);
        }
    }
    CHECK(taken == 5);
    CHECK_OK(lockstep_engine_step(engine, NULL, NULL));
    lockstep_engine_destroy(engine);
}

static void what_was_drawn_can_be_taken_early(void) {
    fixture f;
    fixture_init(&f);
    lockstep_engine *engine;
    CHECK_OK(lockstep_engine_create(&engine, shared_model, &f.engine_options));
    static const uint64_t ids[2] = {5, 6};
    CHECK_OK(lockstep_engine_add(engine, &f.tokens.tensor, ids, 2));
    CHECK_OK(lockstep_engine_step(engine, NULL, NULL));
    lockstep_rollout rollout;
    CHECK_OK(lockstep_engine_take(&rollout, engine, 0));
    CHECK(rollout.token_count == -1);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(lockstep_engine_take(&rollout, engine, 1));
        CHECK(rollout.token_count == 1 && rollout.finish == LOCKSTEP_FINISH_RUNNING);
    }
    CHECK_OK(lockstep_engine_take(&rollout, engine, 1));
    CHECK(rollout.token_count == -1);
    size_t running = 9;
    CHECK_OK(lockstep_engine_step(engine, &running, NULL));
    CHECK(running == 0);
    /* The engine keeps its model alive. */
    lockstep_model *model;
    lockstep_engine *other;
    CHECK_OK(lockstep_model_load(&model, FOLDER, NULL, NULL));
    CHECK_OK(lockstep_engine_create(&other, model, NULL));
    lockstep_model_destroy(model);
    CHECK_OK(lockstep_engine_add(other, &f.tokens.tensor, ids, 2));
    CHECK_OK(lockstep_engine_step(other, &running, NULL));
    CHECK(running == 2);
    lockstep_engine_destroy(other);
    lockstep_engine_destroy(engine);
}

static void loading_refuses(void) {
    ACCEPTED(load, (void)0);
    REFUSED(load, INVALID_ARGUMENT, "path", f.path = NULL);
    REFUSED(load, INVALID_ARGUMENT, "path", f.path = "\xff\xfe");
    REFUSED(load, FILE, "config.json", f.path = "");
    REFUSED(load, FILE, "/nowhere/config.json", f.path = "/nowhere");
    REFUSED(load, FILE, "adapter_config.json", f.adapter = "/nowhere");
    REFUSED(load, FILE, "adapter_config.json", f.adapter = f.path);
    REFUSED(load, INVALID_ARGUMENT, "struct_size", f.recipe.struct_size = 0);
    REFUSED(load, INVALID_ARGUMENT, "struct_size", f.recipe.struct_size = 5);
    REFUSED(load, INVALID_ARGUMENT, "struct_size", f.recipe.struct_size = UINT32_MAX);
    REFUSED(load, INVALID_ARGUMENT, "parameters", f.recipe.parameters = 0);
    REFUSED(load, INVALID_ARGUMENT, "activations", f.recipe.activations = LOCKSTEP_FLOAT64);
    REFUSED(load, INVALID_ARGUMENT, "cache", f.recipe.cache = LOCKSTEP_INT32);
    REFUSED(load, INVALID_ARGUMENT, "probabilities", f.recipe.probabilities = INT32_MIN);
    REFUSED(load, INVALID_ARGUMENT, "logits", f.recipe.logits = 12345);
    REFUSED(load, INVALID_ARGUMENT, "logits", f.recipe.logits = LOCKSTEP_E8M + 24);
    REFUSED(load, INVALID_ARGUMENT, "cache", f.recipe.cache = LOCKSTEP_E5M);
    REFUSED(load, INVALID_ARGUMENT, "order is 5", f.recipe.order = 5);
    REFUSED(load, INVALID_ARGUMENT, "order is -1", f.recipe.order = -1);
    fixture f;
    fixture_init(&f);
    test_refused(__FILE__, __LINE__, "model NULL", lockstep_model_load(NULL, FOLDER, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "model is NULL", "", 0);
}

static void recipes_refuse(void) {
    ACCEPTED(recipe_named, (void)0);
    REFUSED(recipe_named, INVALID_ARGUMENT, "name", f.name = NULL);
    REFUSED(recipe_named, INVALID_ARGUMENT, "-fp32head", f.name = "FP16");
    REFUSED(recipe_named, INVALID_ARGUMENT, "e8mN", f.name = "e8m0");
    REFUSED(recipe_named, INVALID_ARGUMENT, "name", f.name = "\xff");
    REFUSED(recipe_named, INVALID_ARGUMENT, "order 'none' is not known; give one of lockstep, split-k",
            f.name = "fp16+none");
    ACCEPTED(recipe_text, (void)0);
    REFUSED(recipe_text, INVALID_ARGUMENT, "cache", f.recipe.cache = 5);
    REFUSED(recipe_text, INVALID_ARGUMENT, "struct_size", f.recipe.struct_size = 23);
    ACCEPTED(recipe_matches, (void)0);
    REFUSED(recipe_matches, INVALID_ARGUMENT, "rollout: order is 9", f.recipe.order = 9);
    REFUSED(recipe_matches, INVALID_ARGUMENT, "rollout: struct_size", f.recipe.struct_size = 0);
    test_refused(__FILE__, __LINE__, "matches NULL", lockstep_recipe_matches(NULL, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "matches", "", 0);
    test_refused(__FILE__, __LINE__, "text NULL", lockstep_recipe_text(NULL, 9, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "text", "", 0);
    REFUSED(recipe_named, INVALID_ARGUMENT, "struct_size", f.info_size = 0);
    test_refused(__FILE__, __LINE__, "recipe NULL", lockstep_recipe_named(NULL, "fp16"),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "recipe", "", 0);
    ACCEPTED(get_info, (void)0);
    REFUSED(get_info, INVALID_ARGUMENT, "model is NULL", f.model = NULL);
    REFUSED(get_info, INVALID_ARGUMENT, "struct_size", f.info_size = 0);
    REFUSED(get_info, INVALID_ARGUMENT, "struct_size", f.info_size = 47);
    test_refused(__FILE__, __LINE__, "info NULL", lockstep_model_get_info(NULL, shared_model),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "info", "", 0);
}

static void scoring_refuses(void) {
    ACCEPTED(score, (void)0);
    ACCEPTED(score, f.entropy.absent = 1);
    ACCEPTED(score, f.offsets.absent = 1);
    static const argument_place places[] = {PLACE(log_probs, REQUIRED | OUTPUT), PLACE(entropy, OUTPUT),
                                            PLACE(tokens, REQUIRED), PLACE(offsets, 0)};
    REFUSES_SPOILED_ARGUMENTS(score, places);
    REFUSED(score, INVALID_ARGUMENT, "model is NULL", f.model = NULL);
    ACCEPTED(score_counting, (void)0);
    REFUSES_SPOILED_ARGUMENTS(score_counting, places);
    REFUSED(score_counting, INVALID_ARGUMENT, "struct_size", f.info_size = 0);
    REFUSED(score_counting, INVALID_ARGUMENT, "model is NULL", f.model = NULL);
    REFUSED(score_counting, INVALID_ARGUMENT, "tokens[2] is 97", f.token_data[2] = VOCAB);
    REFUSED(score, INVALID_ARGUMENT, "tokens[2] is 97", f.token_data[2] = VOCAB);
    REFUSED(score, INVALID_ARGUMENT, "tokens[6] is -1", f.token_data[6] = -1);
    REFUSED(score, INVALID_ARGUMENT, "tokens[0] is 2147483647", f.token_data[0] = INT32_MAX);
    REFUSED(score, INVALID_ARGUMENT, "sequence 1 is empty", f.offset_data[1] = TOKENS);
    REFUSED(score, INVALID_ARGUMENT, "offsets", f.offset_data[1] = TOKENS + 1);
    REFUSED(score, INVALID_ARGUMENT, "offsets", f.offset_data[1] = -1);
    REFUSED(score, INVALID_ARGUMENT, "offsets", f.offset_data[0] = 1);
    REFUSED(score, INVALID_ARGUMENT, "offsets", f.offset_data[2] = TOKENS - 1);
    REFUSED(score, INVALID_ARGUMENT, "struct_size", f.score_options.struct_size = 0);
    REFUSED(score, INVALID_ARGUMENT, "struct_size", f.score_options.struct_size = 23);
    REFUSED(score, INVALID_ARGUMENT, "struct_size", f.score_options.struct_size = UINT32_MAX);
    REFUSED(score, INVALID_ARGUMENT, "threads", f.score_options.threads = -1);
    REFUSED(score, INVALID_ARGUMENT, "instruction_set", f.score_options.instruction_set = 77);
    REFUSED(score, INVALID_ARGUMENT, "reserved", f.score_options.reserved = 1);
    REFUSED(score, INVALID_ARGUMENT, "temperature", f.score_options.temperature = 0);
    REFUSED(score, INVALID_ARGUMENT, "temperature", f.score_options.temperature = NAN);
    ACCEPTED(logits, (void)0);
    ACCEPTED(logits, f.offsets.absent = 1);
    static const argument_place matrices[] = {PLACE(logits, REQUIRED | OUTPUT), PLACE(tokens, REQUIRED),
                                              PLACE(offsets, 0)};
    REFUSES_SPOILED_ARGUMENTS(logits, matrices);
    REFUSED(logits, INVALID_ARGUMENT, "model is NULL", f.model = NULL);
    REFUSED(logits, INVALID_ARGUMENT, "tokens[2] is 97", f.token_data[2] = VOCAB);
    REFUSED(logits, INVALID_ARGUMENT, "give 7 x 97", f.logits.shape[1] = VOCAB - 1);
    REFUSED(logits, INVALID_ARGUMENT, "reserved", f.score_options.reserved = 1);
    /* Longer than the context of 128. */
    int32_t ids[129] = {0};
    double out[129];
    int64_t shape[1] = {129};
    lockstep_tensor tokens = lockstep_tensor_of(ids, LOCKSTEP_INT32, 1, shape);
    lockstep_tensor log_probs = lockstep_tensor_of(out, LOCKSTEP_FLOAT64, 1, shape);
    memset(out, TEST_CANARY, sizeof out);
    test_refused(__FILE__, __LINE__, "too long",
                 lockstep_model_score(&log_probs, NULL, shared_model, &tokens, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "129 tokens", out, sizeof out);
}

static void engines_refuse(void) {
    ACCEPTED(engine, (void)0);
    REFUSED(engine, INVALID_ARGUMENT, "model is NULL", f.model = NULL);
    REFUSED(engine, INVALID_ARGUMENT, "struct_size", f.engine_options.struct_size = 0);
    REFUSED(engine, INVALID_ARGUMENT, "struct_size", f.engine_options.struct_size = 79);
    REFUSED(engine, INVALID_ARGUMENT, "top_k", f.engine_options.top_k = -1);
    REFUSED(engine, INVALID_ARGUMENT, "temperature", f.engine_options.temperature = -1);
    REFUSED(engine, INVALID_ARGUMENT, "temperature", f.engine_options.temperature = NAN);
    REFUSED(engine, INVALID_ARGUMENT, "temperature", f.engine_options.temperature = 1e-9);
    REFUSED(engine, INVALID_ARGUMENT, "top_p", f.engine_options.top_p = 0);
    REFUSED(engine, INVALID_ARGUMENT, "min_p", f.engine_options.min_p = 2);
    REFUSED(engine, INVALID_ARGUMENT, "max_tokens", f.engine_options.max_tokens = 0);
    REFUSED(engine, INVALID_ARGUMENT, "max_tokens", f.engine_options.max_tokens = INT64_MIN);
    REFUSED(engine, INVALID_ARGUMENT, "capacity", f.engine_options.capacity = 0);
    REFUSED(engine, INVALID_ARGUMENT, "capacity", f.engine_options.capacity = 513);
    REFUSED(engine, INVALID_ARGUMENT, "threads", f.engine_options.threads = -1);
    REFUSED(engine, INVALID_ARGUMENT, "stop_ids", f.engine_options.stop_id_count = 1);
    ACCEPTED(engine, f.engine_options.temperature = 0);

    ACCEPTED(add, (void)0);
    static const argument_place places[] = {{"prompt", offsetof(fixture, tokens), REQUIRED}};
    REFUSES_SPOILED_ARGUMENTS(add, places);
}

static void calls_without_an_engine_are_refused(void) {
    fixture f;
    fixture_init(&f);
    static const uint64_t ids[1] = {1};
    lockstep_rollout rollout;
    lockstep_engine *engine;
    size_t running, finished;
    memset(&rollout, TEST_CANARY, sizeof rollout);
    memset(&running, TEST_CANARY, sizeof running);
    memset(&finished, TEST_CANARY, sizeof finished);
    test_refused(__FILE__, __LINE__, "add", lockstep_engine_add(NULL, &f.tokens.tensor, ids, 1),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "engine is NULL", "", 0);
    test_refused(__FILE__, __LINE__, "step", lockstep_engine_step(NULL, &running, &finished),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "engine is NULL", &running, sizeof running);
    test_refused(__FILE__, __LINE__, "take", lockstep_engine_take(&rollout, NULL, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "engine is NULL", &rollout, sizeof rollout);
    test_refused(__FILE__, __LINE__, "create", lockstep_engine_create(NULL, shared_model, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "engine is NULL", "", 0);
    CHECK_OK(lockstep_engine_create(&engine, shared_model, NULL));
    test_refused(__FILE__, __LINE__, "take", lockstep_engine_take(NULL, engine, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "rollout", "", 0);
    test_refused(__FILE__, __LINE__, "ids", lockstep_engine_add(engine, &f.tokens.tensor, NULL, 1),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "ids", "", 0);
    test_refused(__FILE__, __LINE__, "count", lockstep_engine_add(engine, &f.tokens.tensor, ids, SIZE_MAX),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "count", "", 0);
    test_refused(__FILE__, __LINE__, "prompt", lockstep_engine_add(engine, NULL, ids, 1),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "prompt", "", 0);
    f.token_data[3] = VOCAB;
    test_refused(__FILE__, __LINE__, "token", lockstep_engine_add(engine, &f.tokens.tensor, ids, 1),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "prompt[3] is 97", "", 0);
    CHECK_OK(lockstep_engine_step(engine, &running, &finished));
    CHECK(running == 0 && finished == 0);
    lockstep_engine_destroy(engine);
}

int main(void) {
    CHECK_OK(lockstep_model_load(&shared_model, FOLDER, NULL, NULL));
    TEST(a_model_says_what_it_is);
    TEST(recipes_have_an_order);
    TEST(counting_has_the_bits_of_scoring);
    TEST(fp8_is_for_rollout_engines);
    TEST(loading_is_told);
    TEST(audits_look_at_gradients);
    TEST(logits_give_the_log_probs_of_scoring);
    TEST(the_engine_has_the_bits_of_scoring);
    TEST(what_was_drawn_can_be_taken_early);
    TEST(loading_refuses);
    TEST(recipes_refuse);
    TEST(scoring_refuses);
    TEST(engines_refuse);
    TEST(calls_without_an_engine_are_refused);
    lockstep_model_destroy(shared_model);
    return test_report();
}

/* Section 10 from C: where two engines part, dumps, differences of two matrices; every misuse is refused by name. */
#include "arguments.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>

#define FOLDER ROOT "/Tests/Vectors/models/llama_untied"
#define OTHER ROOT "/Tests/Vectors/models/qwen2_bias"

enum { TOKENS = 7, SEQUENCES = 2, VOCAB = 97, LAYERS = 2 };

static lockstep_model *bf16, *fp16, *fp32, *other;

typedef struct {
    lockstep_localiser_options options;
    lockstep_score_options score_options;
    argument tokens, offsets, first, second, trainer, rollout;
    int32_t token_data[TOKENS], ranges[4];
    int64_t offset_data[SEQUENCES + 1];
    float first_data[6], second_data[6];
    double trainer_data[TOKENS], rollout_data[TOKENS];
    const lockstep_model *trainer_model, *rollout_model;
    uint32_t difference_size;
    const char *path;
    lockstep_swap swap;
    int is_begun_only;
    struct {
        lockstep_localiser *localiser;
        unsigned char difference[sizeof(lockstep_difference)];
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const int32_t ids[TOKENS] = {5, 9, 96, 0, 3, 3, 3};
    static const float first[6] = {1, 2, 3, 4, 5, 6}, second[6] = {1, 2, 3, 4, 5, 8};
    lockstep_localiser_options options = LOCKSTEP_LOCALISER_OPTIONS_INIT;
    lockstep_score_options score_options = LOCKSTEP_SCORE_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    memcpy(f->token_data, ids, sizeof ids);
    memcpy(f->first_data, first, sizeof first);
    memcpy(f->second_data, second, sizeof second);
    f->offset_data[1] = 4;
    f->offset_data[2] = TOKENS;
    argument_init(&f->tokens, f->token_data, LOCKSTEP_INT32, TOKENS, 0);
    argument_init(&f->offsets, f->offset_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->first, f->first_data, LOCKSTEP_FLOAT32, 2, 3);
    argument_init(&f->second, f->second_data, LOCKSTEP_FLOAT32, 2, 3);
    argument_init(&f->trainer, f->trainer_data, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->rollout, f->rollout_data, LOCKSTEP_FLOAT64, TOKENS, 0);
    f->options = options;
    f->options.threads = 1;
    f->options.reference = fp32;
    f->ranges[0] = 1, f->ranges[1] = 2, f->ranges[2] = 0, f->ranges[3] = 1;
    f->options.ranges = f->ranges;
    f->options.range_count = 2;
    f->score_options = score_options;
    f->trainer_model = bf16;
    f->rollout_model = fp16;
    f->difference_size = sizeof(lockstep_difference);
    f->path = "/tmp/lockstep-localiser-test.safetensors";
}

static lockstep_status create(fixture *f) {
    lockstep_localiser *localiser = NULL;
    lockstep_status status = lockstep_localiser_create(&localiser, f->trainer_model, f->rollout_model,
                                                       given(&f->tokens), given(&f->offsets), &f->options);
    if (status == LOCKSTEP_OK) lockstep_localiser_destroy(localiser);
    else CHECK(localiser == NULL);
    return status;
}

static lockstep_localiser *located(fixture *f) {
    lockstep_localiser *localiser = NULL;
    size_t done = 0, total = 1;
    CHECK_OK(lockstep_localiser_create(&localiser, f->trainer_model, f->rollout_model, given(&f->tokens),
                                       given(&f->offsets), &f->options));
    while (!f->is_begun_only && done < total) {
        size_t before = done;
        CHECK_OK(lockstep_localiser_step(localiser, &done, &total));
        if (done != before + 1) break;
    }
    CHECK(f->is_begun_only || done == total);
    return localiser;
}

static lockstep_status log_probs(fixture *f) {
    lockstep_localiser *localiser = located(f);
    memset(f->trainer_data, TEST_CANARY, sizeof f->trainer_data);
    lockstep_status status = lockstep_localiser_log_probs(given(&f->trainer), given(&f->rollout), localiser, f->swap);
    if (status != LOCKSTEP_OK) CHECK(test_is_canary(f->trainer_data, sizeof f->trainer_data));
    lockstep_localiser_destroy(localiser);
    return status;
}

static lockstep_status measure(fixture *f) {
    lockstep_difference difference;
    memset(&difference, TEST_CANARY, sizeof difference);
    difference.struct_size = f->difference_size;
    lockstep_status status = lockstep_difference_measure(&difference, given(&f->first), given(&f->second));
    if (status == LOCKSTEP_OK) memcpy(f->outputs.difference, &difference, sizeof difference);
    return status;
}

static lockstep_status dump(fixture *f) {
    return lockstep_model_dump(f->path, f->trainer_model, given(&f->tokens), given(&f->offsets), &f->score_options);
}

static void two_recipes_part_at_the_embedding(void) {
    fixture f;
    fixture_init(&f);
    lockstep_localiser *localiser = located(&f);
    size_t count = 0;
    lockstep_difference row = {.struct_size = sizeof row};
    CHECK_OK(lockstep_localiser_read(NULL, &count, localiser, 0));
    CHECK(count == 1 + LAYERS * 11 + 2);
    CHECK_OK(lockstep_localiser_read(&row, NULL, localiser, 0));
    CHECK(strcmp(row.operation, "embedding") == 0 && row.layer == -1 && row.rows == TOKENS);
    CHECK(row.differing > 0 && row.first_row == 0 && row.relative_rms > 1e-4 && row.relative_rms < 1e-2);
    CHECK_OK(lockstep_localiser_read(&row, NULL, localiser, count - 1));
    CHECK(strcmp(row.operation, "log-probs") == 0 && row.layer == LAYERS && row.columns == 1);
    CHECK_OK(lockstep_localiser_log_probs(&f.trainer.tensor, &f.rollout.tensor, localiser, LOCKSTEP_SWAP_NONE));
    double scores[TOKENS];
    int64_t shape[1] = {TOKENS};
    lockstep_tensor out = lockstep_tensor_of(scores, LOCKSTEP_FLOAT64, 1, shape);
    CHECK_OK(lockstep_model_score(&out, NULL, fp16, &f.tokens.tensor, &f.offsets.tensor, NULL));
    CHECK(memcmp(scores, f.rollout_data, sizeof scores) == 0);
    test_refused(__FILE__, __LINE__, "row", lockstep_localiser_read(&row, NULL, localiser, count),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "index", "", 0);
    row.struct_size = 3;
    test_refused(__FILE__, __LINE__, "size", lockstep_localiser_read(&row, NULL, localiser, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "struct_size", "", 0);
    lockstep_localiser_destroy(localiser);

    f.rollout_model = bf16;
    localiser = located(&f);
    row.struct_size = sizeof row;
    for (size_t index = 0; index < count; index++) {
        CHECK_OK(lockstep_localiser_read(&row, NULL, localiser, index));
        CHECK(row.differing == 0 && row.first_row == -1 && row.relative_rms == 0);
    }
    lockstep_localiser_destroy(localiser);
}

static void localisers_refuse(void) {
    ACCEPTED(create, (void)0);
    ACCEPTED(create, f.offsets.absent = 1);
    ACCEPTED(create, (f.options.range_count = 0, f.options.reference = NULL));
    static const argument_place places[] = {PLACE(tokens, REQUIRED), PLACE(offsets, 0)};
    REFUSES_SPOILED_ARGUMENTS(create, places);
    REFUSED(create, INVALID_ARGUMENT, "trainer is NULL", f.trainer_model = NULL);
    REFUSED(create, INVALID_ARGUMENT, "rollout is NULL", f.rollout_model = NULL);
    REFUSED(create, INVALID_ARGUMENT, "rollout: is a model of another shape", f.rollout_model = other);
    REFUSED(create, INVALID_ARGUMENT, "reference: is a model of another shape", f.options.reference = other);
    REFUSED(create, INVALID_ARGUMENT, "reference: is missing", f.options.reference = NULL);
    REFUSED(create, INVALID_ARGUMENT, "options.ranges", f.options.ranges = NULL);
    REFUSED(create, INVALID_ARGUMENT, "range_count", f.options.range_count = SIZE_MAX);
    REFUSED(create, INVALID_ARGUMENT, "ranges[1]", f.ranges[3] = 0);
    REFUSED(create, INVALID_ARGUMENT, "ranges[0]", f.ranges[0] = 2);
    REFUSED(create, INVALID_ARGUMENT, "ranges[1]", f.ranges[3] = 3);
    REFUSED(create, INVALID_ARGUMENT, "ranges[1]", f.ranges[2] = INT32_MIN);
    REFUSED(create, INVALID_ARGUMENT, "tokens[2] is 97", f.token_data[2] = VOCAB);
    REFUSED(create, INVALID_ARGUMENT, "sequence 1 is empty", f.offset_data[1] = TOKENS);
    REFUSED(create, INVALID_ARGUMENT, "struct_size", f.options.struct_size = 0);
    REFUSED(create, INVALID_ARGUMENT, "reserved", f.options.reserved = 1);
    REFUSED(create, INVALID_ARGUMENT, "threads", f.options.threads = -1);
    REFUSED(create, INVALID_ARGUMENT, "instruction_set", f.options.instruction_set = 77);

    for (lockstep_swap swap = 0; swap < LOCKSTEP_SWAP_LAYERS + 2; swap++) ACCEPTED(log_probs, f.swap = swap);
    fixture f;
    fixture_init(&f);
    lockstep_localiser *localiser = located(&f);
    test_refused(__FILE__, __LINE__, "swap",
                 lockstep_localiser_log_probs(&f.trainer.tensor, &f.rollout.tensor, localiser, LOCKSTEP_SWAP_LAYERS + 2),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "swap", "", 0);
    test_refused(__FILE__, __LINE__, "swap",
                 lockstep_localiser_log_probs(&f.trainer.tensor, &f.rollout.tensor, localiser, -1),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "swap", "", 0);
    test_refused(__FILE__, __LINE__, "swap",
                 lockstep_localiser_log_probs(&f.trainer.tensor, &f.rollout.tensor, localiser, INT32_MAX),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "swap", "", 0);
    test_refused(__FILE__, __LINE__, "trainer",
                 lockstep_localiser_log_probs(NULL, &f.rollout.tensor, localiser, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "trainer is NULL", "", 0);
    test_refused(__FILE__, __LINE__, "rollout",
                 lockstep_localiser_log_probs(&f.trainer.tensor, NULL, localiser, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "rollout is NULL", "", 0);
    lockstep_localiser_destroy(localiser);
    f.is_begun_only = 1;
    localiser = located(&f);
    test_refused(__FILE__, __LINE__, "begun",
                 lockstep_localiser_log_probs(&f.trainer.tensor, &f.rollout.tensor, localiser, 0),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "steps are left", "", 0);
    lockstep_localiser_destroy(localiser);
    lockstep_localiser_destroy(NULL);
    test_refused(__FILE__, __LINE__, "step", lockstep_localiser_step(NULL, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "localiser is NULL", "", 0);
    test_refused(__FILE__, __LINE__, "create",
                 lockstep_localiser_create(NULL, bf16, fp16, &f.tokens.tensor, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "localiser is NULL", "", 0);
}

static void differences_are_measured(void) {
    fixture f;
    fixture_init(&f);
    CHECK_OK(measure(&f));
    lockstep_difference found;
    memcpy(&found, f.outputs.difference, sizeof found);
    CHECK(found.rows == 2 && found.columns == 3 && found.differing == 1 && found.first_row == 1);
    CHECK(found.first_column == 2 && found.max_abs == 2 && found.operation == NULL && found.layer == -1);
    CHECK(fabs(found.relative_rms - sqrt(4.0 / 91)) < 1e-15 && fabs(found.mean_abs - 2.0 / 6) < 1e-15);
    static const argument_place places[] = {PLACE(first, REQUIRED), PLACE(second, REQUIRED)};
    REFUSES_SPOILED_ARGUMENTS(measure, places);
    REFUSED(measure, INVALID_ARGUMENT, "struct_size", f.difference_size = 8);
    REFUSED(measure, INVALID_ARGUMENT, "second: shape is [1 x 3]", f.second.shape[0] = 1);
}

static void dumps_are_new_files(void) {
    fixture f;
    fixture_init(&f);
    unlink(f.path);
    CHECK_OK(dump(&f));
    FILE *file = fopen(f.path, "rb");
    unsigned char head[9];
    CHECK(file != NULL && fread(head, 1, 9, file) == 9 && head[8] == '{');
    if (file != NULL) fclose(file);
    REFUSED(dump, FILE, "localiser-test", (void)0);
    unlink(f.path);
    REFUSED(dump, FILE, "nowhere", f.path = "/nowhere/at/all");
    REFUSED(dump, INVALID_ARGUMENT, "path is NULL", f.path = NULL);
    REFUSED(dump, INVALID_ARGUMENT, "model is NULL", f.trainer_model = NULL);
    REFUSED(dump, INVALID_ARGUMENT, "tokens[1] is -1", f.token_data[1] = -1);
    CHECK(access(f.path, F_OK) != 0);
}

int main(void) {
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    CHECK_OK(lockstep_recipe_named(&recipe, "bf16"));
    CHECK_OK(lockstep_model_load(&bf16, FOLDER, NULL, &recipe));
    CHECK_OK(lockstep_recipe_named(&recipe, "fp16"));
    CHECK_OK(lockstep_model_load(&fp16, FOLDER, NULL, &recipe));
    CHECK_OK(lockstep_model_load(&fp32, FOLDER, NULL, NULL));
    CHECK_OK(lockstep_model_load(&other, OTHER, NULL, NULL));
    TEST(two_recipes_part_at_the_embedding);
    TEST(localisers_refuse);
    TEST(differences_are_measured);
    TEST(dumps_are_new_files);
    lockstep_model_destroy(bf16);
    lockstep_model_destroy(fp16);
    lockstep_model_destroy(fp32);
    lockstep_model_destroy(other);
    return test_report();
}

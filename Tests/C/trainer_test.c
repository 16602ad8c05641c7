/* Section 11 from C: gradients do not depend on how a batch is cut, a step changes the snapshot, and every misuse is
 * refused by name. */
#include "arguments.h"

#include <math.h>
#include <stddef.h>
#include <stdlib.h>

#define FOLDER ROOT "/Tests/Vectors/models/llama_untied"

enum { TOKENS = 7, SEQUENCES = 2, VOCAB = 97 };

static lockstep_trainer *shared_trainer;
static size_t elements;

typedef struct {
    argument log_probs, entropy, tokens, offsets, d_log_probs, d_entropy;
    int32_t token_data[TOKENS];
    int64_t offset_data[SEQUENCES + 1];
    double d_log_prob_data[TOKENS], d_entropy_data[TOKENS];
    double loss_scale, temperature;
    lockstep_trainer *trainer;
    struct {
        double log_probs[TOKENS], entropy[TOKENS];
        lockstep_backward_report report;
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const int32_t ids[TOKENS] = {5, 9, 96, 0, 3, 3, 3};
    memset(f, 0, sizeof *f);
    memcpy(f->token_data, ids, sizeof ids);
    f->offset_data[1] = 4;
    f->offset_data[2] = TOKENS;
    for (int i = 0; i < TOKENS; i++) {
        f->d_log_prob_data[i] = 0.25 * (i - 3);
        f->d_entropy_data[i] = 0.01;
    }
    argument_init(&f->log_probs, f->outputs.log_probs, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->entropy, f->outputs.entropy, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->tokens, f->token_data, LOCKSTEP_INT32, TOKENS, 0);
    argument_init(&f->offsets, f->offset_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->d_log_probs, f->d_log_prob_data, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->d_entropy, f->d_entropy_data, LOCKSTEP_FLOAT64, TOKENS, 0);
    f->loss_scale = f->temperature = 1;
    f->trainer = shared_trainer;
    f->outputs.report.struct_size = sizeof f->outputs.report;
}

static lockstep_status accumulate(fixture *f) {
    return lockstep_trainer_accumulate(&f->outputs.report, given(&f->log_probs), given(&f->entropy), f->trainer,
                                       given(&f->tokens), given(&f->offsets), given(&f->d_log_probs),
                                       given(&f->d_entropy), f->loss_scale, f->temperature);
}

static float *gradients(lockstep_trainer *trainer) {
    float *values = malloc(elements * sizeof(float));
    int64_t shape[1] = {(int64_t)elements};
    lockstep_tensor tensor = lockstep_tensor_of(values, LOCKSTEP_FLOAT32, 1, shape);
    CHECK_OK(lockstep_trainer_gradients(&tensor, trainer));
    return values;
}

static void a_batch_in_parts_has_the_bits_of_the_whole(void) {
    fixture whole, part;
    fixture_init(&whole);
    CHECK_OK(accumulate(&whole));
    CHECK(whole.outputs.report.sequences == 2 && whole.outputs.report.overflows == 0);
    CHECK(whole.outputs.report.overflow_sequence == -1 && whole.outputs.report.overflow_operation[0] == 0);
    float *wanted = gradients(shared_trainer);
    CHECK_OK(lockstep_trainer_clear(shared_trainer));
    for (int sequence = 1; sequence >= 0; sequence--) {
        fixture_init(&part);
        const int first = sequence == 0 ? 0 : 4, count = sequence == 0 ? 4 : 3;
        argument_init(&part.log_probs, part.outputs.log_probs, LOCKSTEP_FLOAT64, count, 0);
        argument_init(&part.tokens, part.token_data + first, LOCKSTEP_INT32, count, 0);
        argument_init(&part.d_log_probs, part.d_log_prob_data + first, LOCKSTEP_FLOAT64, count, 0);
        argument_init(&part.d_entropy, part.d_entropy_data + first, LOCKSTEP_FLOAT64, count, 0);
        part.entropy.absent = part.offsets.absent = 1;
        CHECK_OK(accumulate(&part));
        CHECK(memcmp(part.outputs.log_probs, whole.outputs.log_probs + first, (size_t)count * sizeof(double)) == 0);
    }
    float *found = gradients(shared_trainer);
    CHECK(memcmp(found, wanted, elements * sizeof(float)) == 0);
    size_t nonzero = 0;
    for (size_t i = 0; i < elements; i++) nonzero += found[i] != 0;
    CHECK(nonzero > elements / 2);
    free(found);
    free(wanted);
    CHECK_OK(lockstep_trainer_clear(shared_trainer));
}

static void a_step_changes_the_snapshot(void) {
    fixture f;
    lockstep_trainer *trainer;
    lockstep_model *before, *after;
    float *masters;
    size_t count;
    double scores[2][TOKENS];
    CHECK_OK(lockstep_trainer_create(&trainer, FOLDER, NULL, NULL));
    fixture_init(&f);
    f.trainer = trainer;
    CHECK_OK(lockstep_trainer_snapshot(&before, trainer));
    CHECK_OK(accumulate(&f));
    float *gradient = gradients(trainer);
    CHECK_OK(lockstep_trainer_masters(&masters, &count, trainer));
    CHECK(count == elements);
    for (size_t i = 0; i < count; i++) masters[i] -= 0.01f * gradient[i];
    CHECK_OK(lockstep_trainer_snapshot(&after, trainer));
    lockstep_trainer_destroy(trainer);
    argument_init(&f.log_probs, scores[0], LOCKSTEP_FLOAT64, TOKENS, 0);
    CHECK_OK(lockstep_model_score(&f.log_probs.tensor, NULL, before, &f.tokens.tensor, &f.offsets.tensor, NULL));
    CHECK(memcmp(scores[0], f.outputs.log_probs, sizeof scores[0]) == 0);
    argument_init(&f.log_probs, scores[1], LOCKSTEP_FLOAT64, TOKENS, 0);
    CHECK_OK(lockstep_model_score(&f.log_probs.tensor, NULL, after, &f.tokens.tensor, &f.offsets.tensor, NULL));
    double change = 0;
    for (int i = 0; i < TOKENS; i++) change += f.d_log_prob_data[i] * (scores[1][i] - scores[0][i]);
    CHECK(change < 0);
    free(gradient);
    lockstep_model_destroy(before);
    lockstep_model_destroy(after);
}

static void an_overflow_is_reported(void) {
    fixture f;
    lockstep_recipe recipe = {.struct_size = sizeof recipe};
    CHECK_OK(lockstep_recipe_named(&recipe, "fp16"));
    lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
    options.recomputes = 1;
    lockstep_trainer *trainer;
    CHECK_OK(lockstep_trainer_create(&trainer, FOLDER, &recipe, &options));
    fixture_init(&f);
    f.trainer = trainer;
    f.loss_scale = 1e9;
    CHECK_OK(accumulate(&f));
    CHECK(f.outputs.report.overflows == 2 && f.outputs.report.overflow_sequence == 0);
    CHECK(f.outputs.report.overflow_layer == 2 && strcmp(f.outputs.report.overflow_operation, "output head") == 0);
    float *found = gradients(trainer);
    CHECK(isnan(found[0]) && isnan(found[elements - 1]));
    free(found);
    CHECK_OK(lockstep_trainer_clear(trainer));
    found = gradients(trainer);
    CHECK(found[0] == 0 && found[elements - 1] == 0);
    free(found);
    lockstep_trainer_destroy(trainer);
}

static void tensors_have_names(void) {
    lockstep_parameter parameter;
    size_t tensors, end = 0;
    CHECK_OK(lockstep_trainer_parameter(NULL, &tensors, NULL, shared_trainer, SIZE_MAX));
    for (size_t i = 0; i < tensors; i++) {
        CHECK_OK(lockstep_trainer_parameter(&parameter, NULL, NULL, shared_trainer, i));
        CHECK(parameter.offset == end && parameter.count == (size_t)(parameter.shape[0] * parameter.shape[1]));
        CHECK((parameter.dimensions == 2) == (parameter.decays == 1));
        end += parameter.count;
    }
    CHECK(end == elements && tensors == 21 && strcmp(parameter.name, "model.norm.weight") == 0);
    test_refused(__FILE__, __LINE__, "index", lockstep_trainer_parameter(&parameter, NULL, NULL, shared_trainer, 21),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "index is 21", "", 0);
}

static lockstep_status create(const char *path, const lockstep_trainer_options *options) {
    lockstep_trainer *trainer = NULL;
    lockstep_status status = lockstep_trainer_create(&trainer, path, NULL, options);
    if (status == LOCKSTEP_OK) lockstep_trainer_destroy(trainer);
    else CHECK(trainer == NULL);
    return status;
}

static void creating_refuses(void) {
    lockstep_trainer_options options = LOCKSTEP_TRAINER_OPTIONS_INIT;
#define BAD(CHANGE, STATUS, TEXT)                                                                  \
    do {                                                                                           \
        lockstep_trainer_options bad = options;                                                    \
        CHANGE;                                                                                    \
        test_refused(__FILE__, __LINE__, #CHANGE, create(FOLDER, &bad), STATUS, TEXT, "", 0);      \
    } while (0)
    BAD(bad.struct_size = 3, LOCKSTEP_ERROR_INVALID_ARGUMENT, "struct_size");
    BAD(bad.threads = -1, LOCKSTEP_ERROR_INVALID_ARGUMENT, "threads");
    BAD(bad.instruction_set = 77, LOCKSTEP_ERROR_INVALID_ARGUMENT, "instruction_set");
    BAD(bad.recomputes = 2, LOCKSTEP_ERROR_INVALID_ARGUMENT, "recomputes is 2");
    BAD(bad.rank = -1, LOCKSTEP_ERROR_INVALID_ARGUMENT, "rank is -1");
    BAD((bad.rank = 2, bad.alpha = NAN), LOCKSTEP_ERROR_INVALID_ARGUMENT, "alpha");
    BAD((bad.rank = 2, bad.targets = "q_proj nothing"), LOCKSTEP_ERROR_INVALID_ARGUMENT, "'nothing'");
    BAD((bad.rank = 2, bad.targets = " "), LOCKSTEP_ERROR_INVALID_ARGUMENT, "targets");
    BAD((bad.rank = 2, bad.adapter = FOLDER "_lora"), LOCKSTEP_ERROR_INVALID_ARGUMENT, "adapter");
    BAD(bad.adapter = FOLDER, LOCKSTEP_ERROR_FILE, "adapter_config.json");
    BAD(bad.deviation = -1, LOCKSTEP_ERROR_INVALID_ARGUMENT, "deviation");
    BAD(bad.deviation = NAN, LOCKSTEP_ERROR_INVALID_ARGUMENT, "deviation");
    BAD((bad.deviation = 1, bad.rank = 2), LOCKSTEP_ERROR_INVALID_ARGUMENT, "deviation");
    test_refused(__FILE__, __LINE__, "path", create(NULL, NULL), LOCKSTEP_ERROR_INVALID_ARGUMENT, "path", "", 0);
    test_refused(__FILE__, __LINE__, "path", create("/nowhere", NULL), LOCKSTEP_ERROR_FILE, "/nowhere", "", 0);
    test_refused(__FILE__, __LINE__, "trainer", lockstep_trainer_create(NULL, FOLDER, NULL, NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "trainer is NULL", "", 0);
    options.rank = 2;
    options.alpha = 4;
    options.targets = "down_proj q_proj";
    CHECK_OK(create(FOLDER, &options));
}

static void accumulating_refuses(void) {
    fixture f;
#define SPOILT(CHANGE, TEXT)                                                                          \
    do {                                                                                              \
        fixture_init(&f);                                                                             \
        memset(&f.outputs.log_probs, TEST_CANARY, sizeof f.outputs.log_probs);                        \
        CHANGE;                                                                                       \
        test_refused(__FILE__, __LINE__, #CHANGE, accumulate(&f), LOCKSTEP_ERROR_INVALID_ARGUMENT, TEXT, \
                     f.outputs.log_probs, sizeof f.outputs.log_probs);                                \
    } while (0)
    SPOILT(f.trainer = NULL, "trainer is NULL");
    SPOILT(f.tokens.absent = 1, "tokens");
    SPOILT(f.d_log_probs.absent = 1, "d_log_probs");
    SPOILT(f.token_data[2] = VOCAB, "tokens[2] is 97");
    SPOILT(f.d_log_prob_data[3] = INFINITY, "d_log_probs[3] is inf");
    SPOILT(f.d_entropy_data[3] = NAN, "d_entropy[3] is nan");
    SPOILT(f.offset_data[1] = 9, "offsets");
    SPOILT(f.loss_scale = 0, "loss_scale");
    SPOILT(f.temperature = -1, "temperature");
    SPOILT(f.outputs.report.struct_size = 1, "struct_size");
    argument_init(&f.d_log_probs, f.d_log_prob_data, LOCKSTEP_FLOAT64, TOKENS - 1, 0);
    f.outputs.report.struct_size = sizeof f.outputs.report;
    f.temperature = 1;
    test_refused(__FILE__, __LINE__, "shape", accumulate(&f), LOCKSTEP_ERROR_INVALID_ARGUMENT, "d_log_probs: has 6",
                 f.outputs.log_probs, sizeof f.outputs.log_probs);
}

static void other_calls_refuse(void) {
    float few[4];
    int64_t shape[1] = {4};
    lockstep_tensor tensor = lockstep_tensor_of(few, LOCKSTEP_FLOAT32, 1, shape);
    memset(few, TEST_CANARY, sizeof few);
    test_refused(__FILE__, __LINE__, "count", lockstep_trainer_gradients(&tensor, shared_trainer),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "gradients: has 4 elements", few, sizeof few);
    test_refused(__FILE__, __LINE__, "null", lockstep_trainer_gradients(NULL, shared_trainer),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "gradients", "", 0);
    test_refused(__FILE__, __LINE__, "masters", lockstep_trainer_masters(NULL, NULL, shared_trainer),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "masters", "", 0);
    test_refused(__FILE__, __LINE__, "model", lockstep_trainer_snapshot(NULL, shared_trainer),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "model is NULL", "", 0);
    test_refused(__FILE__, __LINE__, "clear", lockstep_trainer_clear(NULL), LOCKSTEP_ERROR_INVALID_ARGUMENT,
                 "trainer is NULL", "", 0);
    lockstep_trainer_destroy(NULL);
}

int main(void) {
    CHECK_OK(lockstep_trainer_create(&shared_trainer, FOLDER, NULL, NULL));
    CHECK_OK(lockstep_trainer_parameter(NULL, NULL, &elements, shared_trainer, 0));
    TEST(tensors_have_names);
    TEST(a_batch_in_parts_has_the_bits_of_the_whole);
    TEST(a_step_changes_the_snapshot);
    TEST(an_overflow_is_reported);
    TEST(creating_refuses);
    TEST(accumulating_refuses);
    TEST(other_calls_refuse);
    lockstep_trainer_destroy(shared_trainer);
    return test_report();
}

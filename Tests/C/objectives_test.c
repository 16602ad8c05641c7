/* Section 8 of the header: objectives. */
#include "arguments.h"

#include <math.h>

enum { TOKENS = 6, SEQUENCES = 2 };

typedef struct {
    argument current_log_probs, trainer_log_probs, reference_log_probs, advantages, weights, mask, kept, selected;
    argument offsets, groups, d_log_probs, d_entropies, picked;
    growable options;
    uint32_t batch_size, batch_reserved;
    uint32_t report_size;
    int null_report, null_batch;
    double current[TOKENS], trainer[TOKENS], reference[TOKENS], weights_data[TOKENS];
    double advantages_data[SEQUENCES];
    uint8_t mask_data[TOKENS], kept_data[TOKENS], selected_data[TOKENS];
    int64_t offsets_data[SEQUENCES + 1], groups_data[SEQUENCES];
    struct {
        double d_log_probs[TOKENS], d_entropies[TOKENS];
        uint8_t picked[TOKENS];
        lockstep_objective_report report;
    } outputs;
} fixture;

static void fixture_init_for(fixture *f, int covariance) {
    static const lockstep_objective_options objective = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    static const lockstep_covariance_options selection = LOCKSTEP_COVARIANCE_OPTIONS_INIT;
    static const double current[TOKENS] = {-0.5, -1, -1.5, -0.25, -2, -0.125};
    static const double trainer[TOKENS] = {-0.5, -1.5, -1, -0.25, -1, -0.25};
    memset(f, 0, sizeof *f);
    if (covariance) f->options.covariance = selection; else f->options.objective = objective;
    f->batch_size = sizeof(lockstep_batch);
    f->report_size = sizeof(lockstep_objective_report);
    memcpy(f->current, current, sizeof current);
    memcpy(f->trainer, trainer, sizeof trainer);
    memcpy(f->reference, trainer, sizeof trainer);
    for (int i = 0; i < TOKENS; i++) f->weights_data[i] = f->mask_data[i] = f->kept_data[i] = 1;
    f->advantages_data[0] = 1;
    f->advantages_data[1] = -1;
    f->offsets_data[1] = 4;
    f->offsets_data[2] = TOKENS;
    f->groups_data[1] = 1;
    argument_init(&f->current_log_probs, f->current, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->trainer_log_probs, f->trainer, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->reference_log_probs, f->reference, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->advantages, f->advantages_data, LOCKSTEP_FLOAT64, SEQUENCES, 0);
    argument_init(&f->weights, f->weights_data, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->mask, f->mask_data, LOCKSTEP_UINT8, TOKENS, 0);
    argument_init(&f->kept, f->kept_data, LOCKSTEP_BOOL, TOKENS, 0);
    argument_init(&f->selected, f->selected_data, LOCKSTEP_UINT8, TOKENS, 0);
    argument_init(&f->offsets, f->offsets_data, LOCKSTEP_INT64, SEQUENCES + 1, 0);
    argument_init(&f->groups, f->groups_data, LOCKSTEP_INT64, SEQUENCES, 0);
    argument_init(&f->d_log_probs, f->outputs.d_log_probs, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->d_entropies, f->outputs.d_entropies, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->picked, f->outputs.picked, LOCKSTEP_UINT8, TOKENS, 0);
}
#define fixture_init(f) fixture_init_for(f, 0)

static lockstep_batch batch_of(const fixture *f) {
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.struct_size = f->batch_size;
    batch.reserved = f->batch_reserved;
    batch.current_log_probs = given(&f->current_log_probs);
    batch.trainer_log_probs = given(&f->trainer_log_probs);
    batch.reference_log_probs = given(&f->reference_log_probs);
    batch.advantages = given(&f->advantages);
    batch.weights = given(&f->weights);
    batch.mask = given(&f->mask);
    batch.kept = given(&f->kept);
    batch.selected = given(&f->selected);
    batch.offsets = given(&f->offsets);
    batch.groups = given(&f->groups);
    return batch;
}

static lockstep_status loss(fixture *f) {
    lockstep_batch batch = batch_of(f);
    lockstep_objective_report *report = &f->outputs.report;
    report->struct_size = f->report_size;
    lockstep_status status = lockstep_objective_loss(
        f->null_report ? NULL : report, given(&f->d_log_probs), given(&f->d_entropies),
        f->null_batch ? NULL : &batch, &f->options.objective);
    if (status != LOCKSTEP_OK) memset(&report->struct_size, TEST_CANARY, sizeof report->struct_size);
    return status;
}

static lockstep_status penalty(fixture *f) {
    lockstep_batch batch = batch_of(f);
    if (f->options.struct_size == sizeof(lockstep_objective_options) && f->options.objective.kl == LOCKSTEP_KL_NONE)
        f->options.objective.kl = LOCKSTEP_KL_K3;
    return lockstep_kl_penalty(given(&f->d_log_probs), given(&f->d_entropies), &batch, &f->options.objective);
}

static const argument_place places[] = {
    PLACE(current_log_probs, REQUIRED), PLACE(trainer_log_probs, REQUIRED), PLACE(reference_log_probs, 0),
    PLACE(advantages, REQUIRED), PLACE(weights, 0), PLACE(mask, 0), PLACE(kept, 0), PLACE(selected, 0),
    PLACE(d_log_probs, OUTPUT), PLACE(d_entropies, OUTPUT)};

static void a_loss_refuses_what_does_not_fit(void) {
    REFUSES_SPOILED_ARGUMENTS(loss, places);
    REFUSES_SPOILED_OPTIONS(loss, objective);
    REFUSED(loss, INVALID_ARGUMENT, "report", f.null_report = 1);
    REFUSED(loss, INVALID_ARGUMENT, "report", f.report_size = 8);
    REFUSED(loss, INVALID_ARGUMENT, "batch", f.null_batch = 1);
    REFUSED(loss, INVALID_ARGUMENT, "struct_size", f.batch_size = 8);
    REFUSED(loss, INVALID_ARGUMENT, "reserved", f.batch_reserved = 1);
    REFUSED(loss, INVALID_ARGUMENT, "groups", f.groups.tensor.dtype.code = 2);
    REFUSED(loss, INVALID_ARGUMENT, "groups", f.groups.shape[0] = 1);
    REFUSED(loss, INVALID_ARGUMENT, "offsets[1]", f.offsets_data[1] = 7);
    REFUSED(loss, INVALID_ARGUMENT, "offsets[0]", f.offsets_data[0] = -1);
}

static void a_loss_refuses_options_that_make_no_sense(void) {
#define REFUSED_OPTION(word, field, value) \
    REFUSED(loss, INVALID_ARGUMENT, word, f.options.objective.field = value)
    for (int32_t wrong = -1; wrong <= 99; wrong += 100) {
        REFUSED_OPTION("term", term, wrong);
        REFUSED_OPTION("ratio_level", ratio_level, wrong);
        REFUSED_OPTION("aggregation", aggregation, wrong);
        REFUSED_OPTION("denominator", denominator, wrong);
        REFUSED_OPTION("kl", kl, wrong);
        REFUSED_OPTION("kl_gradient", kl_gradient, wrong);
        REFUSED_OPTION("non_finite", non_finite, wrong);
    }
    const double bad[] = {NAN, -1, -INFINITY};
    for (int i = 0; i < 3; i++) {
        REFUSED_OPTION("low", low, bad[i]);
        REFUSED_OPTION("high", high, bad[i]);
        REFUSED_OPTION("dual", dual, bad[i]);
        REFUSED_OPTION("ratio_max", ratio_max, bad[i]);
        REFUSED_OPTION("tau_positive", tau_positive, bad[i]);
        REFUSED_OPTION("tau_negative", tau_negative, bad[i]);
        REFUSED_OPTION("log_ratio_max", log_ratio_max, bad[i]);
        REFUSED_OPTION("log_ratio_min", log_ratio_min, -bad[i]);
        REFUSED_OPTION("kl_input_max", kl_input_max, bad[i]);
        REFUSED_OPTION("kl_output_max", kl_output_max, bad[i]);
        REFUSED_OPTION("scale", scale, bad[i]);
        REFUSED_OPTION("length", length, bad[i]);
    }
    REFUSED_OPTION("coefficient", coefficient, NAN);
    REFUSED_OPTION("kl_coefficient", kl_coefficient, INFINITY);
    REFUSED_OPTION("entropy_coefficient", entropy_coefficient, NAN);
    REFUSED_OPTION("entropies", entropy_coefficient, 0.1);
    REFUSED_OPTION("length", aggregation, LOCKSTEP_SEQ_MEAN_TOKEN_SUM_NORM);
    REFUSED(loss, INVALID_ARGUMENT, "groups", f.options.objective.aggregation = LOCKSTEP_PROMPT_MEAN,
            f.groups.absent = 1);
    REFUSED(loss, INVALID_ARGUMENT, "reference_log_probs", f.options.objective.kl = LOCKSTEP_KL_K1,
            f.reference_log_probs.absent = 1);
    REFUSED(loss, UNSUPPORTED, "ratio_level", f.options.objective.term = LOCKSTEP_TERM_GMPO,
            f.options.objective.ratio_level = LOCKSTEP_RATIO_SEQUENCE_SUM);
    REFUSED(loss, NON_FINITE, "current_log_probs: sequence 1, position 1", f.current[5] = NAN);
    REFUSED(loss, NON_FINITE, "advantages: sequence 1", f.advantages_data[1] = INFINITY);
    REFUSED(loss, NON_FINITE, "weights: sequence 0", f.weights_data[3] = -INFINITY);
    ACCEPTED(loss, f.current[5] = NAN, f.mask_data[5] = 0);
    ACCEPTED(loss, f.current[5] = NAN, f.options.objective.non_finite = LOCKSTEP_NON_FINITE_EXCLUDE);
    ACCEPTED(loss, f.d_log_probs.absent = 1, f.d_entropies.absent = 1);
}

static void a_penalty_refuses_what_does_not_fit(void) {
    REFUSED(penalty, INVALID_ARGUMENT, "values", f.d_log_probs.absent = 1);
    REFUSED(penalty, INVALID_ARGUMENT, "reference_log_probs", f.reference_log_probs.absent = 1);
    REFUSED(penalty, UNSUPPORTED, "kl_gradient",
            f.options.objective.kl_gradient = LOCKSTEP_KL_GRADIENT_RATIO);
    REFUSED(penalty, NON_FINITE, "reference_log_probs: sequence 0, position 2", f.reference[2] = NAN);
    ACCEPTED(penalty, f.d_entropies.absent = 1);
}

/* -A r of one token, clipped above: 1.2; of one below, not clipped: exp(-1). */
static void the_loss_is_the_formula(void) {
    fixture f;
    fixture_init(&f);
    CHECK_OK(loss(&f));
    const lockstep_objective_report *r = &f.outputs.report;
    const double ratio[TOKENS] = {1, exp(0.5), exp(-0.5), 1, exp(-1), exp(0.125)};
    const double wanted = (-1 - 1.2 - ratio[2] - 1 + 0.8 + ratio[5]) / TOKENS;
    CHECK(fabs(r->loss - wanted) < 1e-15 && r->loss == r->policy_loss && !r->empty);
    CHECK(r->tokens == TOKENS && r->sequences == SEQUENCES && r->clip_high == 1.0 / 6 && r->clip_low == 1.0 / 6);
    CHECK(f.outputs.d_log_probs[1] == 0 && f.outputs.d_log_probs[4] == 0);
    CHECK(fabs(f.outputs.d_log_probs[2] + ratio[2] / TOKENS) < 1e-16);
    CHECK(fabs(f.outputs.d_log_probs[5] - ratio[5] / TOKENS) < 1e-16);
    CHECK(isnan(r->entropy) && isnan(r->kl));
}

static void a_handle_gives_the_bits_of_the_whole(void) {
    fixture f;
    fixture_init(&f);
    f.options.objective.aggregation = LOCKSTEP_SEQ_MEAN_TOKEN_MEAN;
    CHECK_OK(loss(&f));
    const double whole = f.outputs.report.loss;
    double gradient[TOKENS];
    memcpy(gradient, f.outputs.d_log_probs, sizeof gradient);

    lockstep_objective *objective = NULL;
    lockstep_objective_report report;
    lockstep_objective_counts counts;
    CHECK_OK(lockstep_objective_create(&objective, &f.options.objective));
    const int64_t first[2] = {0, 4}, second[2] = {4, 2};
    for (int pass = 0; pass < 2; pass++)
        for (int part = 1; part >= 0; part--) {
            const int64_t start = part ? second[0] : first[0], count = part ? second[1] : first[1];
            lockstep_tensor current = lockstep_tensor_of(f.current + start, LOCKSTEP_FLOAT64, 1, &count);
            lockstep_tensor trainer = lockstep_tensor_of(f.trainer + start, LOCKSTEP_FLOAT64, 1, &count);
            const int64_t one = 1;
            lockstep_tensor advantage = lockstep_tensor_of(f.advantages_data + part, LOCKSTEP_FLOAT64, 1, &one);
            lockstep_tensor d = lockstep_tensor_of(f.outputs.d_log_probs + start, LOCKSTEP_FLOAT64, 1, &count);
            lockstep_batch batch = LOCKSTEP_BATCH_INIT;
            batch.current_log_probs = &current;
            batch.trainer_log_probs = &trainer;
            batch.advantages = &advantage;
            if (pass == 0) CHECK_OK(lockstep_objective_count(objective, &batch));
            else CHECK_OK(lockstep_objective_evaluate(objective, &d, NULL, &batch));
        }
    CHECK_OK(lockstep_objective_counted(&counts, objective));
    CHECK(counts.tokens == TOKENS && counts.sequences == SEQUENCES && counts.prompts == 0);
    report.struct_size = sizeof report;
    CHECK_OK(lockstep_objective_read(&report, objective));
    CHECK(memcmp(&report.loss, &whole, sizeof whole) == 0);
    CHECK(memcmp(gradient, f.outputs.d_log_probs, sizeof gradient) == 0);

    lockstep_batch batch = batch_of(&f);
    CHECK(lockstep_objective_evaluate(objective, NULL, NULL, &batch) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    counts.tokens = -1;
    CHECK(lockstep_objective_add_counts(objective, &counts) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    counts.tokens = INT64_MAX;
    CHECK(lockstep_objective_add_counts(objective, &counts) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK_OK(lockstep_objective_reset(objective));
    CHECK_OK(lockstep_objective_counted(&counts, objective));
    CHECK(counts.tokens == 0);
    lockstep_objective_destroy(objective);
    lockstep_objective_destroy(NULL);
}

static void handles_refuse_null(void) {
    lockstep_objective *objective = NULL;
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    lockstep_objective_counts counts = {0, 0, 0};
    lockstep_objective_report report;
    report.struct_size = sizeof report;
    CHECK(lockstep_objective_create(NULL, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_count(NULL, &batch) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_evaluate(NULL, NULL, NULL, &batch) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_read(&report, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_counted(&counts, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_add_counts(NULL, &counts) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_reset(NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK_OK(lockstep_objective_create(&objective, NULL));
    CHECK(lockstep_objective_read(NULL, objective) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_counted(NULL, objective) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_add_counts(objective, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_count(objective, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_objective_count(objective, &batch) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    lockstep_objective_destroy(objective);
}

static lockstep_status select_tokens(fixture *f) {
    lockstep_batch batch = batch_of(f);
    return lockstep_covariance_select(given(&f->picked), NULL, &batch, &f->options.covariance);
}

#undef fixture_init
#define fixture_init(f) fixture_init_for(f, 1)

static void a_selection_refuses_what_does_not_fit(void) {
    REFUSED(select_tokens, INVALID_ARGUMENT, "rule", f.options.covariance.rule = 2);
    REFUSED(select_tokens, INVALID_ARGUMENT, "share", f.options.covariance.share = NAN);
    REFUSED(select_tokens, INVALID_ARGUMENT, "share", f.options.covariance.share = 1.5);
    REFUSED(select_tokens, INVALID_ARGUMENT, "high", f.options.covariance.high = 0);
    REFUSED(select_tokens, INVALID_ARGUMENT, "ratio_high", f.options.covariance.ratio_high = 0.2);
    REFUSED(select_tokens, INVALID_ARGUMENT, "selected", f.picked.absent = 1);
    REFUSED(select_tokens, INVALID_ARGUMENT, "selected", f.picked.tensor.dtype.bits = 64);
    REFUSED(select_tokens, INVALID_ARGUMENT, "trainer_log_probs", f.trainer_log_probs.absent = 1);
    REFUSED(select_tokens, NON_FINITE, "current_log_probs", f.current[0] = INFINITY);
    ACCEPTED(select_tokens, f.options.covariance.rule = LOCKSTEP_COVARIANCE_KL, f.trainer_log_probs.absent = 1);
}

static void coefficients_move_to_the_target(void) {
    double coefficient = 0.2;
    CHECK_OK(lockstep_kl_coefficient_update(&coefficient, 3, 6, 10000, 64));
    CHECK(fabs(coefficient - 0.199744) < 1e-15);
    const double before = coefficient;
    CHECK(lockstep_kl_coefficient_update(NULL, 3, 6, 10000, 64) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_kl_coefficient_update(&coefficient, NAN, 6, 10000, 64) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_kl_coefficient_update(&coefficient, 3, 0, 10000, 64) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_kl_coefficient_update(&coefficient, 3, 6, 0, 64) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_kl_coefficient_update(&coefficient, 3, 6, 10000, -1) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(coefficient == before);
}

int main(void) {
    TEST(a_loss_refuses_what_does_not_fit);
    TEST(a_loss_refuses_options_that_make_no_sense);
    TEST(a_penalty_refuses_what_does_not_fit);
    TEST(the_loss_is_the_formula);
    TEST(a_handle_gives_the_bits_of_the_whole);
    TEST(handles_refuse_null);
    TEST(a_selection_refuses_what_does_not_fit);
    TEST(coefficients_move_to_the_target);
    return test_report();
}

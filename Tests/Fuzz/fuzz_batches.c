/* Corrections, advantages, objectives and penalties of any batch and options. */
#include "call.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

#define WORDS "weights kept correction counts gradients batch options rejections trainer rollout current reference entropies entropy advantages " \
    "mask selected offsets groups ids rewards truncated baselines values squared_mass kind returns penalties lengths d_ report kl " \
    "objective struct_size sequence token length coefficient count log_probs target horizon steps"

typedef struct {
    int64_t sequences, length;
    int is_packed;
} layout;

static const lockstep_tensor *tokens(fuzz_call *c, const layout *l, int optional, const int32_t *dtypes, enum fuzz_values values) {
    return l->is_packed ? fuzz_vector(c, optional, dtypes, l->sequences * l->length, values, 4)
                        : fuzz_matrix(c, optional, dtypes, l->sequences, l->length, values, 4);
}

static lockstep_batch *batch_of(fuzz_call *c, const layout *l) {
    static const size_t pointers[] = {8, sizeof(lockstep_batch), 0, 0};
    lockstep_batch batch = LOCKSTEP_BATCH_INIT;
    batch.trainer_log_probs = tokens(c, l, FUZZ_OPTIONAL, FUZZ_ANY_FLOATS, FUZZ_LOG_PROBS);
    batch.rollout_log_probs = tokens(c, l, FUZZ_OPTIONAL, FUZZ_ANY_FLOATS, FUZZ_LOG_PROBS);
    batch.current_log_probs = tokens(c, l, FUZZ_OPTIONAL, FUZZ_ANY_FLOATS, FUZZ_LOG_PROBS);
    batch.reference_log_probs = tokens(c, l, FUZZ_OPTIONAL, FUZZ_ANY_FLOATS, FUZZ_LOG_PROBS);
    batch.entropies = tokens(c, l, FUZZ_OPTIONAL, FUZZ_ANY_FLOATS, FUZZ_NUMBERS);
    batch.advantages = fuzz_u8(&c->bytes) & 1 ? tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NUMBERS)
                                              : fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, l->sequences, FUZZ_NUMBERS, 0);
    batch.weights = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_MASK);
    batch.mask = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLAGS, FUZZ_MASK);
    batch.kept = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLAGS, FUZZ_MASK);
    batch.selected = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLAGS, FUZZ_MASK);
    if (l->is_packed)
        batch.offsets = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INT64, l->sequences + 1, FUZZ_OFFSETS, l->sequences * l->length);
    batch.groups = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_INTEGERS, l->sequences, FUZZ_COUNTS, 3);
    batch.ids = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_IDS, l->sequences, FUZZ_COUNTS, 1000);
    return fuzz_options(c, &batch, sizeof batch, pointers);
}

static void correct(fuzz_call *c, const layout *l, const lockstep_batch *batch) {
    static const size_t pointers[] = {offsetof(lockstep_correction_options, rejections), sizeof(lockstep_correction_options), 0, 0};
    lockstep_correction_options usual = LOCKSTEP_CORRECTION_OPTIONS_INIT;
    lockstep_rejection rule = {0, 0, 0, 0, 0.5, 2};
    size_t count = (size_t)fuzz_pick(&c->bytes, 0, 3);
    unsigned char *rules = fuzz_memory(c, count * sizeof rule, 0);
    for (size_t i = 0; i < count; i++) {
        rule.statistic = (int32_t)fuzz_pick(&c->bytes, 0, fuzz_u8(&c->bytes) > 250 ? 8 : 5);
        rule.level = (int32_t)fuzz_pick(&c->bytes, 0, 5);
        rule.policies = (int32_t)fuzz_pick(&c->bytes, 0, 2);
        rule.side = (int32_t)fuzz_pick(&c->bytes, 0, 2);
        if (fuzz_u8(&c->bytes) > 128) rule.low = fuzz_double(&c->bytes);
        if (fuzz_u8(&c->bytes) > 128) rule.high = fuzz_double(&c->bytes);
        memcpy(rules + i * sizeof rule, &rule, sizeof rule);
    }
    usual.threads = 1;
    usual.weights = (int32_t)fuzz_pick(&c->bytes, 0, 4);
    usual.level = (int32_t)fuzz_pick(&c->bytes, 0, 4);
    usual.rejections = count ? (const lockstep_rejection *)(const void *)rules : NULL;
    usual.rejection_count = count;
    const lockstep_correction_options *options = fuzz_options(c, &usual, sizeof usual, pointers);
    const lockstep_tensor *weights = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NOTHING);
    const lockstep_tensor *kept = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLAGS, FUZZ_NOTHING);
    lockstep_correction *correction = fuzz_result(c, sizeof *correction, FUZZ_OPTIONAL);
    lockstep_rejection_count *counts = fuzz_output(c, count * sizeof *counts, FUZZ_OPTIONAL);
    fuzz_ready(c);
    lockstep_status status = lockstep_correct(weights, kept, correction, counts, batch, options);
    if (fuzz_end(c, status, WORDS) == LOCKSTEP_OK && correction && correction->struct_size >= sizeof *correction) {
        FUZZ_CHECK(correction->tokens + correction->masked_tokens + correction->excluded_tokens <= l->sequences * l->length + 64);
        FUZZ_CHECK(correction->rejected_tokens <= correction->tokens && correction->sequences <= correction->tokens);
    }
}

static void earn(fuzz_call *c, const layout *l, const lockstep_batch *batch) {
    static const size_t pointers[] = {8, sizeof(lockstep_rewards), 0, 0};
    lockstep_rewards rewards = LOCKSTEP_REWARDS_INIT;
    lockstep_advantage_options usual = LOCKSTEP_ADVANTAGE_OPTIONS_INIT;
    usual.estimator = (int32_t)fuzz_pick(&c->bytes, 0, 13);
    int way = usual.estimator == LOCKSTEP_ADVANTAGE_GDPO ? 2 : (int)fuzz_pick(&c->bytes, 0, 1);
    rewards.rewards = way == 2   ? fuzz_matrix(c, FUZZ_REQUIRED, FUZZ_FLOATS, l->sequences, 2, FUZZ_NUMBERS, 0)
                      : way == 1 ? tokens(c, l, FUZZ_REQUIRED, FUZZ_FLOATS, FUZZ_NUMBERS)
                                 : fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, l->sequences, FUZZ_MASK, 0);
    rewards.truncated = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLAGS, l->sequences, FUZZ_MASK, 0);
    rewards.baselines = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, l->sequences, FUZZ_NUMBERS, 0);
    rewards.values = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NUMBERS);
    rewards.squared_mass = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_MASK);
    rewards.kind_weights = fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, 2, FUZZ_NUMBERS, 0);
    const lockstep_rewards *given = fuzz_options(c, &rewards, sizeof rewards, pointers);
    const lockstep_advantage_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    int by_token = (int)fuzz_pick(&c->bytes, 0, 1);
    const lockstep_tensor *advantages = by_token ? tokens(c, l, FUZZ_REQUIRED, FUZZ_FLOATS, FUZZ_NOTHING)
                                                 : fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, l->sequences, FUZZ_NOTHING, 0);
    const lockstep_tensor *returns = by_token ? tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NOTHING)
                                              : fuzz_vector(c, FUZZ_OPTIONAL, FUZZ_FLOATS, l->sequences, FUZZ_NOTHING, 0);
    fuzz_ready(c);
    fuzz_end(c, lockstep_advantages(advantages, returns, given, batch, options), WORDS);
}

static void lose(fuzz_call *c, const layout *l, const lockstep_batch *batch, int in_parts) {
    lockstep_objective_options usual = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    usual.threads = 1;
    usual.term = (int32_t)fuzz_pick(&c->bytes, 0, 9);
    usual.aggregation = (int32_t)fuzz_pick(&c->bytes, 0, 5);
    usual.ratio_level = fuzz_u8(&c->bytes) > 128 ? (int32_t)fuzz_pick(&c->bytes, 0, 3) : 0;
    usual.kl = (int32_t)fuzz_pick(&c->bytes, 0, 4);
    usual.length = 10;
    const lockstep_objective_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
    const lockstep_tensor *d_log_probs = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NOTHING);
    const lockstep_tensor *d_entropies = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NOTHING);
    lockstep_objective_report *report = fuzz_result(c, sizeof *report, FUZZ_REQUIRED);
    fuzz_ready(c);
    lockstep_status status = lockstep_objective_loss(report, d_log_probs, d_entropies, batch, options);
    if (fuzz_end(c, status, WORDS) != LOCKSTEP_OK || report->struct_size < sizeof *report) return;
    FUZZ_CHECK(report->rejected_tokens <= report->tokens && report->sequences <= report->tokens);
    if (!in_parts || c->is_shared) return;
    /* The same by the handle, before and after it forgot what it was told besides. */
    lockstep_objective *objective = NULL;
    FUZZ_CHECK(lockstep_objective_create(&objective, options) == LOCKSTEP_OK);
    for (int i = 0; i < 2; i++) {
        lockstep_objective_report again;
        lockstep_objective_counts counts, more = {fuzz_integer(&c->bytes), fuzz_integer(&c->bytes), fuzz_integer(&c->bytes)};
        memset(&again, 0, sizeof again);
        again.struct_size = sizeof again;
        FUZZ_CHECK(lockstep_objective_count(objective, batch) == LOCKSTEP_OK);
        FUZZ_CHECK(lockstep_objective_evaluate(objective, d_log_probs, d_entropies, batch) == LOCKSTEP_OK);
        FUZZ_CHECK(lockstep_objective_read(&again, objective) == LOCKSTEP_OK);
        FUZZ_CHECK(memcmp(&again.loss, &report->loss, 8) == 0 && again.tokens == report->tokens);
        FUZZ_CHECK(lockstep_objective_counted(&counts, objective) == LOCKSTEP_OK);
        FUZZ_CHECK(counts.tokens >= 0 && counts.sequences <= l->sequences && counts.prompts <= l->sequences);
        for (int k = 0; k < 2; k++)
            if (FUZZ_STATUS(lockstep_objective_add_counts(objective, &more), WORDS " prompts") == LOCKSTEP_OK)
                FUZZ_STATUS(lockstep_objective_evaluate(objective, d_log_probs, d_entropies, batch), WORDS);
        FUZZ_STATUS(lockstep_objective_read(&again, objective), WORDS);
        FUZZ_CHECK(lockstep_objective_reset(objective) == LOCKSTEP_OK);
    }
    lockstep_objective_destroy(objective);
}

static void select_and_penalise(fuzz_call *c, const layout *l, const lockstep_batch *batch) {
    lockstep_covariance_options usual = LOCKSTEP_COVARIANCE_OPTIONS_INIT;
    lockstep_objective_options usual_kl = LOCKSTEP_OBJECTIVE_OPTIONS_INIT;
    int which = (int)fuzz_pick(&c->bytes, 0, 3);
    usual_kl.threads = 1;
    usual_kl.kl = (int32_t)fuzz_pick(&c->bytes, 0, 4);
    if (which == 0) {
        const lockstep_tensor *selected = tokens(c, l, FUZZ_REQUIRED, FUZZ_FLAGS, FUZZ_NOTHING);
        size_t *count = fuzz_output(c, sizeof *count, FUZZ_OPTIONAL);
        const lockstep_covariance_options *options = fuzz_options(c, &usual, sizeof usual, NULL);
        fuzz_ready(c);
        fuzz_end(c, lockstep_covariance_select(selected, count, batch, options), WORDS);
    } else if (which == 1) {
        const lockstep_tensor *values = tokens(c, l, FUZZ_REQUIRED, FUZZ_FLOATS, FUZZ_NOTHING);
        const lockstep_tensor *gradients = tokens(c, l, FUZZ_OPTIONAL, FUZZ_FLOATS, FUZZ_NOTHING);
        const lockstep_objective_options *options = fuzz_options(c, &usual_kl, sizeof usual_kl, NULL);
        fuzz_ready(c);
        fuzz_end(c, lockstep_kl_penalty(values, gradients, batch, options), WORDS);
    } else if (which == 2) {
        const lockstep_tensor *penalties = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_FLOATS, l->sequences, FUZZ_NOTHING, 0);
        const lockstep_tensor *lengths = fuzz_vector(c, FUZZ_REQUIRED, FUZZ_INTEGERS, l->sequences, FUZZ_COUNTS, 200);
        int64_t longest = fuzz_integer(&c->bytes), buffer = fuzz_integer(&c->bytes);
        double factor = fuzz_double(&c->bytes);
        fuzz_ready(c);
        fuzz_end(c, lockstep_overlong_penalty(penalties, lengths, longest, buffer, factor), WORDS " max_length buffer factor");
    } else {
        double *coefficient = fuzz_output(c, sizeof *coefficient, FUZZ_REQUIRED);
        double kl = fuzz_double(&c->bytes), target = fuzz_double(&c->bytes), horizon = fuzz_double(&c->bytes),
               steps = fuzz_double(&c->bytes);
        if (coefficient) *coefficient = fuzz_double(&c->bytes);
        fuzz_ready(c);
        fuzz_end(c, lockstep_kl_coefficient_update(coefficient, kl, target, horizon, steps), WORDS);
    }
}

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    fuzz_begin(&c, data, size);
    int which = (int)fuzz_pick(&c.bytes, 0, 4);
    layout l = {fuzz_pick(&c.bytes, 0, 5), fuzz_pick(&c.bytes, 0, 9), (int)fuzz_pick(&c.bytes, 0, 1)};
    const lockstep_batch *batch = batch_of(&c, &l);
    switch (which) {
    case 0: correct(&c, &l, batch); break;
    case 1: earn(&c, &l, batch); break;
    case 2: lose(&c, &l, batch, 0); break;
    case 3: lose(&c, &l, batch, 1); break;
    default: select_and_penalise(&c, &l, batch);
    }
    fuzz_free(&c);
}

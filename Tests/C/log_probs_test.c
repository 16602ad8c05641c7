/* Section 3 of the header: log-probs from logits and from hidden states, forward and backward. */
#include "arguments.h"

#include <math.h>
#include <stdlib.h>

enum { TOKENS = 3, VOCAB = 5, H = 4 };

typedef struct {
    argument log_probs, entropy, log_sum_exp, kept_mass;                 /* outputs of the forward */
    argument logits, targets, hidden, weight, bias;                      /* inputs */
    argument d_logits, d_hidden, d_weight, d_bias, d_log_probs, d_entropy; /* the backward */
    argument saved_log_sum_exp;
    growable options;
    int pass_options;
    float logits_data[TOKENS * VOCAB], hidden_data[TOKENS * H], weight_data[VOCAB * H], bias_data[VOCAB];
    float upstream[2][TOKENS];
    double saved[TOKENS];
    int32_t targets_data[TOKENS];
    struct {
        float log_probs[TOKENS], entropy[TOKENS];
        double log_sum_exp[TOKENS], kept_mass[TOKENS];
        float d_logits[TOKENS * VOCAB], d_hidden[TOKENS * H], d_weight[VOCAB * H], d_bias[VOCAB];
        lockstep_head *head;
    } outputs;
} fixture;

static void fixture_init(fixture *f) {
    static const lockstep_log_probs_options defaults = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    memset(f, 0, sizeof *f);
    f->options.log_probs = defaults;
    f->pass_options = 1;
    for (int i = 0; i < TOKENS * VOCAB; i++) f->logits_data[i] = (float)(i % 7) * 0.75f - 2;
    for (int i = 0; i < TOKENS * H; i++) f->hidden_data[i] = (float)(i % 5) * 0.5f - 1;
    for (int i = 0; i < VOCAB * H; i++) f->weight_data[i] = (float)(i % 3) - 0.875f;
    for (int i = 0; i < VOCAB; i++) f->bias_data[i] = (float)i * 0.125f;
    for (int i = 0; i < TOKENS; i++) {
        f->targets_data[i] = i;
        f->upstream[0][i] = 1;
        f->upstream[1][i] = 0.5f;
    }
    argument_init(&f->log_probs, f->outputs.log_probs, LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&f->entropy, f->outputs.entropy, LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&f->log_sum_exp, f->outputs.log_sum_exp, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->kept_mass, f->outputs.kept_mass, LOCKSTEP_FLOAT64, TOKENS, 0);
    argument_init(&f->logits, f->logits_data, LOCKSTEP_FLOAT32, TOKENS, VOCAB);
    argument_init(&f->targets, f->targets_data, LOCKSTEP_INT32, TOKENS, 0);
    argument_init(&f->hidden, f->hidden_data, LOCKSTEP_FLOAT32, TOKENS, H);
    argument_init(&f->weight, f->weight_data, LOCKSTEP_FLOAT32, VOCAB, H);
    argument_init(&f->bias, f->bias_data, LOCKSTEP_FLOAT32, VOCAB, 0);
    argument_init(&f->d_logits, f->outputs.d_logits, LOCKSTEP_FLOAT32, TOKENS, VOCAB);
    argument_init(&f->d_hidden, f->outputs.d_hidden, LOCKSTEP_FLOAT32, TOKENS, H);
    argument_init(&f->d_weight, f->outputs.d_weight, LOCKSTEP_FLOAT32, VOCAB, H);
    argument_init(&f->d_bias, f->outputs.d_bias, LOCKSTEP_FLOAT32, VOCAB, 0);
    argument_init(&f->d_log_probs, f->upstream[0], LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&f->d_entropy, f->upstream[1], LOCKSTEP_FLOAT32, TOKENS, 0);
    argument_init(&f->saved_log_sum_exp, f->saved, LOCKSTEP_FLOAT64, TOKENS, 0);
    f->saved_log_sum_exp.absent = 1;
}

static const lockstep_log_probs_options *options(const fixture *f) {
    return f->pass_options ? &f->options.log_probs : NULL;
}

static lockstep_status log_probs(fixture *f) {
    return lockstep_log_probs(given(&f->log_probs), given(&f->entropy), given(&f->log_sum_exp),
                              given(&f->kept_mass), given(&f->logits), given(&f->targets), options(f));
}

static lockstep_status log_probs_backward(fixture *f) {
    return lockstep_log_probs_backward(given(&f->d_logits), given(&f->d_log_probs), given(&f->d_entropy),
                                       given(&f->saved_log_sum_exp), given(&f->logits), given(&f->targets),
                                       options(f));
}

static lockstep_status linear(fixture *f) {
    return lockstep_linear_log_probs(given(&f->log_probs), given(&f->entropy), given(&f->log_sum_exp),
                                     given(&f->hidden), given(&f->weight), given(&f->bias),
                                     given(&f->targets), options(f));
}

static lockstep_status linear_backward(fixture *f) {
    return lockstep_linear_log_probs_backward(
        given(&f->d_hidden), given(&f->d_weight), given(&f->d_bias), given(&f->d_log_probs),
        given(&f->d_entropy), given(&f->saved_log_sum_exp), given(&f->hidden), given(&f->weight),
        given(&f->bias), given(&f->targets), options(f));
}

static lockstep_status head_create(fixture *f) {
    lockstep_status status = lockstep_head_create(&f->outputs.head, given(&f->weight), given(&f->bias));
    if (status == LOCKSTEP_OK) lockstep_head_destroy(f->outputs.head);
    return status;
}

/* Calls with a head of the fixture's weight as it was before anything was spoiled. */
static lockstep_status head_log_probs(fixture *f) {
    fixture whole;
    lockstep_head *head = NULL;
    fixture_init(&whole);
    CHECK_OK(lockstep_head_create(&head, given(&whole.weight), given(&whole.bias)));
    lockstep_status status =
        lockstep_head_log_probs(given(&f->log_probs), given(&f->entropy), given(&f->log_sum_exp), head,
                                given(&f->hidden), given(&f->targets), options(f));
    lockstep_head_destroy(head);  /* must not clear the message */
    return status;
}

#define FORWARD_OUTPUTS PLACE(log_probs, OUTPUT), PLACE(entropy, OUTPUT), PLACE(log_sum_exp, OUTPUT)

static void log_probs_refuses_bad_tensors(void) {
    static const argument_place places[] = {
        FORWARD_OUTPUTS, PLACE(kept_mass, OUTPUT), PLACE(logits, REQUIRED), PLACE(targets, REQUIRED)};
    ACCEPTED(log_probs, (void)0);
    ACCEPTED(log_probs, f.pass_options = 0);
    REFUSES_SPOILED_ARGUMENTS(log_probs, places);
    REFUSED(log_probs, INVALID_ARGUMENT, "logits", f.logits.tensor.ndim = 1);
    REFUSED(log_probs, INVALID_ARGUMENT, "targets", f.targets.shape[0] = TOKENS - 1);
    REFUSED(log_probs, INVALID_ARGUMENT, "log_probs", f.log_probs.shape[0] = TOKENS + 1);
    REFUSED(log_probs, INVALID_ARGUMENT, "entropy", f.entropy.shape[0] = 0);
    REFUSED(log_probs, INVALID_ARGUMENT, "log_sum_exp", f.log_sum_exp.shape[0] = 1);
    REFUSED(log_probs, INVALID_ARGUMENT, "kept_mass", f.kept_mass.shape[0] = 1);
    REFUSED(log_probs, INVALID_ARGUMENT, "logits", f.logits.tensor.strides = f.logits.strides,
            f.logits.shape[1] = 2, f.logits.strides[1] = 2);
    REFUSED(log_probs, INVALID_ARGUMENT, "log_probs",
            f.log_probs.tensor.dtype = lockstep_dtype_of(LOCKSTEP_BFLOAT16));
    REFUSED(log_probs, INVALID_ARGUMENT, "logits",
            f.logits.tensor.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT8_E5M2));
    REFUSED(log_probs, INVALID_ARGUMENT, "logits", f.logits.tensor.dtype = lockstep_dtype_of(LOCKSTEP_E8M + 5));
}

/* The options every forward and backward reads. */
#define REFUSES_BAD_POLICY(call) \
    do { \
        REFUSES_SPOILED_OPTIONS(call, log_probs); \
        REFUSED(call, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = 0); \
        REFUSED(call, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = -0.0f); \
        REFUSED(call, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = -1); \
        REFUSED(call, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = NAN); \
        REFUSED(call, INVALID_ARGUMENT, "temperature", f.options.log_probs.temperature = INFINITY); \
        REFUSED(call, INVALID_ARGUMENT, "soft_cap", f.options.log_probs.soft_cap = -1); \
        REFUSED(call, INVALID_ARGUMENT, "soft_cap", f.options.log_probs.soft_cap = NAN); \
        REFUSED(call, INVALID_ARGUMENT, "soft_cap", f.options.log_probs.soft_cap = INFINITY); \
        REFUSED(call, INVALID_ARGUMENT, "top_k", f.options.log_probs.top_k = -1); \
        REFUSED(call, INVALID_ARGUMENT, "top_p", f.options.log_probs.top_p = 0); \
        REFUSED(call, INVALID_ARGUMENT, "top_p", f.options.log_probs.top_p = -0.5); \
        REFUSED(call, INVALID_ARGUMENT, "top_p", f.options.log_probs.top_p = 1.5); \
        REFUSED(call, INVALID_ARGUMENT, "top_p", f.options.log_probs.top_p = NAN); \
        REFUSED(call, INVALID_ARGUMENT, "min_p", f.options.log_probs.min_p = -0.5); \
        REFUSED(call, INVALID_ARGUMENT, "min_p", f.options.log_probs.min_p = 1.5); \
        REFUSED(call, INVALID_ARGUMENT, "min_p", f.options.log_probs.min_p = NAN); \
        REFUSED(call, INVALID_ARGUMENT, "logits_dtype", f.options.log_probs.logits_dtype = 12345); \
        REFUSED(call, INVALID_ARGUMENT, "logits_dtype", f.options.log_probs.logits_dtype = LOCKSTEP_INT32); \
        REFUSED(call, INVALID_ARGUMENT, "logits_dtype", f.options.log_probs.logits_dtype = -1); \
    } while (0)

/* Targets are checked before anything is written: the bad one is the last. */
#define REFUSES_BAD_TARGETS(call) \
    do { \
        REFUSED(call, INVALID_ARGUMENT, "targets", f.targets_data[TOKENS - 1] = VOCAB); \
        REFUSED(call, INVALID_ARGUMENT, "targets", f.targets_data[TOKENS - 1] = -1); \
        REFUSED(call, INVALID_ARGUMENT, "targets", f.targets_data[TOKENS - 1] = INT32_MIN); \
        REFUSED(call, INVALID_ARGUMENT, "targets", f.targets_data[TOKENS - 1] = INT32_MAX); \
        REFUSED(call, INVALID_ARGUMENT, "targets", f.targets_data[2] = -100, \
                f.options.log_probs.ignore_index = -7); \
        ACCEPTED(call, f.targets_data[TOKENS - 1] = -100); \
        ACCEPTED(call, f.targets_data[0] = INT32_MIN, f.options.log_probs.ignore_index = INT32_MIN); \
        ACCEPTED(call, f.targets_data[TOKENS - 1] = -7, f.options.log_probs.ignore_index = -7); \
    } while (0)

static void log_probs_refuses_bad_options_and_targets(void) {
    REFUSES_BAD_POLICY(log_probs);
    REFUSES_BAD_TARGETS(log_probs);
}

static void fill_row(float *data, int row, int columns, float value) {
    for (int column = 0; column < columns; column++) data[row * columns + column] = value;
}

/* A row without a distribution is an error that names it, wherever in the row the value is. */
static void rows_without_a_distribution_are_named(void) {
    REFUSED(log_probs, NON_FINITE, "row 2", fill_row(f.logits_data, 2, VOCAB, -INFINITY));
    for (int column = 0; column < VOCAB; column++) {
        REFUSED(log_probs, NON_FINITE, "row 1", f.logits_data[VOCAB + column] = NAN);
        REFUSED(log_probs, NON_FINITE, "row 1", f.logits_data[VOCAB + column] = -NAN);
        REFUSED(log_probs, NON_FINITE, "row 1", f.logits_data[VOCAB + column] = INFINITY);
        REFUSED(log_probs_backward, NON_FINITE, "row 1", f.logits_data[VOCAB + column] = NAN);
    }
    REFUSED(log_probs_backward, NON_FINITE, "row 0", fill_row(f.logits_data, 0, VOCAB, -INFINITY));
    REFUSED(linear, NON_FINITE, "row 1", f.hidden_data[H] = NAN);
    REFUSED(linear_backward, NON_FINITE, "row 1", f.hidden_data[H] = NAN);
    REFUSED(head_log_probs, NON_FINITE, "row 2", f.hidden_data[2 * H + 3] = INFINITY);
}

static void ignored_rows_are_never_read(void) {
    fixture f;
    fixture_init(&f);
    f.targets_data[1] = -100;
    fill_row(f.logits_data, 1, VOCAB, NAN);
    memset(&f.outputs, TEST_CANARY, sizeof f.outputs);
    CHECK_OK(log_probs(&f));
    CHECK(f.outputs.log_probs[1] == 0 && f.outputs.entropy[1] == 0 && f.outputs.log_sum_exp[1] == 0);
    CHECK(f.outputs.log_probs[0] < 0 && f.outputs.log_probs[2] < 0);
    CHECK_OK(log_probs_backward(&f));
    for (int column = 0; column < VOCAB; column++) CHECK(f.outputs.d_logits[VOCAB + column] == 0);
}

static void minus_infinity_contributes_nothing(void) {
    fixture f;
    fixture_init(&f);
    fill_row(f.logits_data, 0, VOCAB, -INFINITY);
    f.logits_data[0] = f.logits_data[4] = 3;
    f.targets_data[0] = 1;
    CHECK_OK(log_probs(&f));
    CHECK(f.outputs.log_probs[0] == -INFINITY);
    CHECK(fabs(f.outputs.log_sum_exp[0] - (3 + log(2))) < 1e-6);
    CHECK(fabs(f.outputs.entropy[0] - log(2)) < 1e-6);
}

static void empty_input_is_no_error(void) {
    ACCEPTED(log_probs, f.logits.shape[0] = f.targets.shape[0] = f.log_probs.shape[0] = 0,
             f.entropy.absent = f.log_sum_exp.absent = f.kept_mass.absent = 1, f.logits.tensor.data = NULL);
    ACCEPTED(linear, f.hidden.shape[0] = f.targets.shape[0] = f.log_probs.shape[0] = 0,
             f.entropy.absent = f.log_sum_exp.absent = 1, f.hidden.tensor.data = NULL);
    /* Hidden states of no width: the logits are the bias alone. */
    ACCEPTED(linear, f.hidden.shape[1] = f.weight.shape[1] = 0,
             f.hidden.tensor.data = f.weight.tensor.data = NULL);
    ACCEPTED(linear_backward, f.hidden.shape[1] = f.weight.shape[1] = f.d_hidden.shape[1] = f.d_weight.shape[1] = 0,
             f.hidden.tensor.data = f.weight.tensor.data = f.d_hidden.tensor.data = f.d_weight.tensor.data = NULL);
    ACCEPTED(linear_backward, f.hidden.shape[0] = f.targets.shape[0] = f.d_log_probs.shape[0] = 0,
             f.d_hidden.shape[0] = f.d_entropy.shape[0] = 0);
    ACCEPTED(log_probs_backward, f.logits.shape[0] = f.targets.shape[0] = f.d_log_probs.shape[0] = 0,
             f.d_logits.shape[0] = f.d_entropy.shape[0] = 0, f.logits.tensor.data = NULL);
    /* Without a vocabulary there is no target to ask for, and no distribution. */
    REFUSED(log_probs, INVALID_ARGUMENT, "targets", f.logits.shape[1] = 0);
    ACCEPTED(log_probs, f.log_probs.absent = f.entropy.absent = f.log_sum_exp.absent = f.kept_mass.absent = 1);
}

static void backward_refuses_bad_input(void) {
    static const argument_place places[] = {
        PLACE(d_logits, REQUIRED | OUTPUT), PLACE(d_log_probs, 0), PLACE(d_entropy, 0),
        PLACE(logits, REQUIRED), PLACE(targets, REQUIRED)};
    ACCEPTED(log_probs_backward, (void)0);
    ACCEPTED(log_probs_backward, f.d_log_probs.absent = f.d_entropy.absent = 1, f.pass_options = 0);
    REFUSES_SPOILED_ARGUMENTS(log_probs_backward, places);
    REFUSES_BAD_POLICY(log_probs_backward);
    REFUSES_BAD_TARGETS(log_probs_backward);
    REFUSED(log_probs_backward, INVALID_ARGUMENT, "d_logits", f.d_logits.shape[1] = VOCAB - 1);
    REFUSED(log_probs_backward, INVALID_ARGUMENT, "d_log_probs", f.d_log_probs.shape[0] = 2);
    REFUSED(log_probs_backward, INVALID_ARGUMENT, "d_entropy", f.d_entropy.shape[0] = 2);
    REFUSED(log_probs_backward, INVALID_ARGUMENT, "log_sum_exp", f.saved_log_sum_exp.absent = 0,
            f.saved_log_sum_exp.shape[0] = 2);
    REFUSED(log_probs_backward, INVALID_ARGUMENT, "log_sum_exp", f.saved_log_sum_exp.absent = 0,
            f.saved_log_sum_exp.tensor.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT32));
    /* What no forward call writes. */
    static const double impossible[] = {1e300, -1e300, 1e30, -1e30, 1.7e308, 3.5e44};
    for (size_t i = 0; i < sizeof impossible / sizeof *impossible; i++) {
        REFUSED(log_probs_backward, INVALID_ARGUMENT, "log_sum_exp[1]", f.saved_log_sum_exp.absent = 0,
                f.saved[1] = impossible[i]);
        REFUSED(linear_backward, INVALID_ARGUMENT, "log_sum_exp[1]", f.saved_log_sum_exp.absent = 0,
                f.saved[1] = impossible[i]);
    }
    REFUSED(log_probs_backward, NON_FINITE, "log_sum_exp[2]", f.saved_log_sum_exp.absent = 0, f.saved[2] = NAN);
    REFUSED(log_probs_backward, NON_FINITE, "log_sum_exp[2]", f.saved_log_sum_exp.absent = 0,
            f.saved[2] = INFINITY);
    REFUSED(log_probs_backward, UNSUPPORTED, "top_k", f.options.log_probs.top_k = 2);
    REFUSED(log_probs_backward, UNSUPPORTED, "top_p", f.options.log_probs.top_p = 0.5);
    REFUSED(log_probs_backward, UNSUPPORTED, "min_p", f.options.log_probs.min_p = 0.5);
}

/* The sums of a forward call are taken back, however large the logits: the same bits as without them. */
static void huge_logits_have_a_backward(void) {
    static const double temperatures[] = {1e-6, 0.7, 1, 3, 1e6};
    static const float sizes[] = {1e3f, 1e6f, 3e6f, 1e9f, 1e30f, 3e38f};
    for (int i = 0; i < 5 * 6; i++) {
        fixture f, g;
        fixture_init(&f);
        f.options.log_probs.temperature = temperatures[i / 6];
        for (int v = 0; v < TOKENS * VOCAB; v++)
            f.logits_data[v] = sizes[i % 6] * (1 - (float)(v % 3) * 1e-7f) * (v % VOCAB == 4 ? -1 : 1);
        CHECK_OK(log_probs(&f));
        CHECK_OK(log_probs_backward(&f));
        fixture_init(&g);
        g.options = f.options;
        memcpy(g.logits_data, f.logits_data, sizeof g.logits_data);
        memcpy(g.saved, f.outputs.log_sum_exp, sizeof g.saved);
        g.saved_log_sum_exp.absent = 0;
        CHECK_OK(log_probs_backward(&g));
        CHECK(memcmp(f.outputs.d_logits, g.outputs.d_logits, sizeof g.outputs.d_logits) == 0);
    }
}

static void linear_refuses_bad_input(void) {
    static const argument_place places[] = {
        FORWARD_OUTPUTS, PLACE(hidden, REQUIRED), PLACE(weight, REQUIRED), PLACE(bias, 0),
        PLACE(targets, REQUIRED)};
    ACCEPTED(linear, (void)0);
    ACCEPTED(linear, f.bias.absent = 1, f.pass_options = 0);
    REFUSES_SPOILED_ARGUMENTS(linear, places);
    REFUSES_BAD_POLICY(linear);
    REFUSES_BAD_TARGETS(linear);
    REFUSED(linear, INVALID_ARGUMENT, "hidden", f.weight.shape[1] = H - 1);
    REFUSED(linear, INVALID_ARGUMENT, "bias", f.bias.shape[0] = VOCAB - 1);
    REFUSED(linear, INVALID_ARGUMENT, "targets", f.targets.shape[0] = TOKENS - 1);
    REFUSED(linear, UNSUPPORTED, "top_k", f.options.log_probs.top_k = 2);
    REFUSED(linear, UNSUPPORTED, "top_p", f.options.log_probs.top_p = 0.5);
    REFUSED(linear, UNSUPPORTED, "min_p", f.options.log_probs.min_p = 0.5);
}

static void linear_backward_refuses_bad_input(void) {
    static const argument_place places[] = {
        PLACE(d_hidden, OUTPUT), PLACE(d_weight, OUTPUT), PLACE(d_bias, OUTPUT), PLACE(d_log_probs, 0),
        PLACE(d_entropy, 0), PLACE(hidden, REQUIRED), PLACE(weight, REQUIRED), PLACE(bias, 0),
        PLACE(targets, REQUIRED)};
    ACCEPTED(linear_backward, (void)0);
    ACCEPTED(linear_backward, f.d_hidden.absent = f.d_weight.absent = f.d_bias.absent = 1);
    REFUSES_SPOILED_ARGUMENTS(linear_backward, places);
    REFUSES_BAD_POLICY(linear_backward);
    REFUSES_BAD_TARGETS(linear_backward);
    REFUSED(linear_backward, INVALID_ARGUMENT, "d_hidden", f.d_hidden.shape[1] = H - 1);
    REFUSED(linear_backward, INVALID_ARGUMENT, "d_weight", f.d_weight.shape[0] = VOCAB - 1);
    REFUSED(linear_backward, INVALID_ARGUMENT, "d_bias", f.d_bias.shape[0] = VOCAB - 1);
    REFUSED(linear_backward, INVALID_ARGUMENT, "d_weight",
            f.d_weight.tensor.dtype = lockstep_dtype_of(LOCKSTEP_INT32));
    REFUSED(linear_backward, UNSUPPORTED, "top_k", f.options.log_probs.top_k = 2);
}

static void head_refuses_bad_input(void) {
    static const argument_place of_create[] = {PLACE(weight, REQUIRED), PLACE(bias, 0)};
    static const argument_place of_call[] = {FORWARD_OUTPUTS, PLACE(hidden, REQUIRED), PLACE(targets, REQUIRED)};
    ACCEPTED(head_create, (void)0);
    ACCEPTED(head_create, f.weight.shape[1] = 0, f.weight.tensor.data = NULL);
    ACCEPTED(head_create, f.weight.shape[0] = f.bias.shape[0] = 0, f.weight.tensor.data = NULL);
    REFUSES_SPOILED_ARGUMENTS(head_create, of_create);
    REFUSED(head_create, INVALID_ARGUMENT, "bias", f.bias.shape[0] = VOCAB + 1);
    ACCEPTED(head_log_probs, (void)0);
    REFUSES_SPOILED_ARGUMENTS(head_log_probs, of_call);
    REFUSES_BAD_POLICY(head_log_probs);
    REFUSES_BAD_TARGETS(head_log_probs);
    REFUSED(head_log_probs, INVALID_ARGUMENT, "hidden", f.hidden.shape[1] = H - 1);

    fixture f;
    fixture_init(&f);
    memset(&f.outputs, TEST_CANARY, sizeof f.outputs);
    test_refused(__FILE__, __LINE__, "head NULL for the result",
                 lockstep_head_create(NULL, given(&f.weight), NULL), LOCKSTEP_ERROR_INVALID_ARGUMENT, "head",
                 &f.outputs, sizeof f.outputs);
    test_refused(__FILE__, __LINE__, "head NULL",
                 lockstep_head_log_probs(given(&f.log_probs), NULL, NULL, NULL, given(&f.hidden),
                                         given(&f.targets), NULL),
                 LOCKSTEP_ERROR_INVALID_ARGUMENT, "head", &f.outputs, sizeof f.outputs);
    lockstep_head_destroy(NULL);
}

/* Against the definition, in double precision: loose, for the exact bounds are tested elsewhere. */
static void values_follow_the_definition(void) {
    fixture f;
    fixture_init(&f);
    f.options.log_probs.temperature = 0.7;
    f.options.log_probs.soft_cap = 2;
    CHECK_OK(log_probs(&f));
    for (int row = 0; row < TOKENS; row++) {
        double y[VOCAB], sum = 0, mean = 0;
        for (int v = 0; v < VOCAB; v++) {
            y[v] = 2 * tanh(f.logits_data[row * VOCAB + v] / 2) / 0.7;
            sum += exp(y[v]);
        }
        for (int v = 0; v < VOCAB; v++) mean += exp(y[v]) / sum * y[v];
        CHECK(fabs(f.outputs.log_probs[row] - (y[f.targets_data[row]] - log(sum))) < 1e-5);
        CHECK(fabs(f.outputs.entropy[row] - (log(sum) - mean)) < 1e-5);
        CHECK(fabs(f.outputs.log_sum_exp[row] - log(sum)) < 1e-5);
        CHECK(f.outputs.kept_mass[row] == 1);
    }
}

/* top_k 2 keeps {3, 2} of the logits 0, 1, 2, 3: the rest is cut and the two are renormalised. */
static void kept_set_is_renormalised(void) {
    ACCEPTED(log_probs, f.options.log_probs.top_k = INT32_MAX);
    ACCEPTED(log_probs, f.options.log_probs.top_p = 1e-300);
    fixture f;
    fixture_init(&f);
    f.options.log_probs.top_k = 2;
    for (int row = 0; row < TOKENS; row++)
        for (int v = 0; v < VOCAB; v++) f.logits_data[row * VOCAB + v] = (float)v - 1;
    f.targets_data[0] = 4;
    f.targets_data[1] = 3;
    f.targets_data[2] = 0;
    CHECK_OK(log_probs(&f));
    double all = exp(-1) + 1 + exp(1) + exp(2) + exp(3), kept = exp(2) + exp(3);
    CHECK(fabs(f.outputs.log_probs[0] - (3 - log(kept))) < 1e-5);
    CHECK(fabs(f.outputs.log_probs[1] - (2 - log(kept))) < 1e-5);
    CHECK(f.outputs.log_probs[2] == -INFINITY);
    CHECK(fabs(f.outputs.kept_mass[0] - kept / all) < 1e-6);

    /* min_p a hair below e^-1 keeps the same two; a program built before there was min_p keeps all five. */
    f.options.log_probs.top_k = 0;
    f.options.log_probs.min_p = 0.36;
    CHECK_OK(log_probs(&f));
    CHECK(fabs(f.outputs.log_probs[1] - (2 - log(kept))) < 1e-5);
    CHECK(f.outputs.log_probs[2] == -INFINITY);
    CHECK(fabs(f.outputs.kept_mass[0] - kept / all) < 1e-6);
    f.options.log_probs.struct_size = 48;
    CHECK_OK(log_probs(&f));
    CHECK(f.outputs.kept_mass[0] == 1);
}

/* One row alone has the bits it has in a batch, whatever the threads and the instruction set; and a head
 * gives the bits of the plain call. */
static void bits_do_not_depend_on_the_batch(void) {
    enum { ROWS = 37, COLUMNS = 3001, WIDTH = 70 };
    float *hidden = malloc(sizeof(float) * ROWS * WIDTH), *weight = malloc(sizeof(float) * COLUMNS * WIDTH);
    float *logits = malloc(sizeof(float) * ROWS * COLUMNS);
    int32_t targets[ROWS];
    uint32_t random = 1;
    for (int i = 0; i < ROWS * WIDTH; i++)
        hidden[i] = (float)((random = random * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
    for (int i = 0; i < COLUMNS * WIDTH; i++)
        weight[i] = (float)((random = random * 1664525u + 1013904223u) >> 8) * 0x1p-23f - 1;
    for (int i = 0; i < ROWS * COLUMNS; i++)
        logits[i] = (float)((random = random * 1664525u + 1013904223u) >> 8) * 0x1p-20f - 8;
    for (int i = 0; i < ROWS; i++) targets[i] = (i * 89) % COLUMNS;

    lockstep_head *head = NULL;
    argument w;
    argument_init(&w, weight, LOCKSTEP_FLOAT32, COLUMNS, WIDTH);
    CHECK_OK(lockstep_head_create(&head, &w.tensor, NULL));
    float whole[3][ROWS];
    for (int set = LOCKSTEP_INSTRUCTION_SET_BEST; set <= LOCKSTEP_INSTRUCTION_SET_NEON; set++) {
        if (!lockstep_has_instruction_set(set)) continue;
        for (int batch = ROWS; batch >= 1; batch = batch == ROWS ? 5 : batch == 5 ? 1 : 0) {
            float found[3][ROWS];
            for (int first = 0; first < ROWS; first += batch) {
                int count = first + batch <= ROWS ? batch : ROWS - first;
                lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
                options.instruction_set = set;
                options.threads = 1 + first % 3;
                argument x, h, y, out;
                argument_init(&x, logits + first * COLUMNS, LOCKSTEP_FLOAT32, count, COLUMNS);
                argument_init(&h, hidden + first * WIDTH, LOCKSTEP_FLOAT32, count, WIDTH);
                argument_init(&y, targets + first, LOCKSTEP_INT32, count, 0);
                argument_init(&out, found[0] + first, LOCKSTEP_FLOAT32, count, 0);
                CHECK_OK(lockstep_log_probs(&out.tensor, NULL, NULL, NULL, &x.tensor, &y.tensor, &options));
                out.tensor.data = found[1] + first;
                CHECK_OK(lockstep_linear_log_probs(&out.tensor, NULL, NULL, &h.tensor, &w.tensor, NULL, &y.tensor,
                                                   &options));
                out.tensor.data = found[2] + first;
                CHECK_OK(lockstep_head_log_probs(&out.tensor, NULL, NULL, head, &h.tensor, &y.tensor, &options));
            }
            if (set == LOCKSTEP_INSTRUCTION_SET_BEST && batch == ROWS) memcpy(whole, found, sizeof whole);
            CHECK(memcmp(whole, found, sizeof whole) == 0);
            CHECK(memcmp(found[1], found[2], sizeof found[1]) == 0);
        }
    }
    lockstep_head_destroy(head);
    free(hidden);
    free(weight);
    free(logits);
}

int main(void) {
    TEST(log_probs_refuses_bad_tensors);
    TEST(log_probs_refuses_bad_options_and_targets);
    TEST(rows_without_a_distribution_are_named);
    TEST(ignored_rows_are_never_read);
    TEST(minus_infinity_contributes_nothing);
    TEST(empty_input_is_no_error);
    TEST(backward_refuses_bad_input);
    TEST(huge_logits_have_a_backward);
    TEST(linear_refuses_bad_input);
    TEST(linear_backward_refuses_bad_input);
    TEST(head_refuses_bad_input);
    TEST(values_follow_the_definition);
    TEST(kept_set_is_renormalised);
    TEST(bits_do_not_depend_on_the_batch);
    return test_report();
}

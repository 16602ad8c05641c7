/* Log-probs and their gradients, from logits and from hidden states, of any arguments. */
#include "call.h"

size_t fuzz_repair(uint8_t *data, size_t size) {
    (void)data;
    return size;
}

#define WORDS "log_probs entropy log_sum_exp kept_mass logits targets options hidden weight bias d_ row head temperature top_ min_p soft_cap threads"

static void check(const lockstep_tensor *log_probs, const lockstep_tensor *entropy) {
    for (int64_t i = 0; log_probs && i < log_probs->shape[0]; i++) FUZZ_CHECK(fuzz_at(log_probs, i, 0) <= 0);
    for (int64_t i = 0; entropy && i < entropy->shape[0]; i++) FUZZ_CHECK(!isnan(fuzz_at(entropy, i, 0)));
}

void fuzz_one(const uint8_t *data, size_t size) {
    static fuzz_call c;
    lockstep_log_probs_options usual = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    usual.threads = 1;
    fuzz_begin(&c, data, size);
    int which = (int)fuzz_pick(&c.bytes, 0, 4);
    int64_t rows = fuzz_pick(&c.bytes, 0, 9), vocab = fuzz_pick(&c.bytes, 1, 40), width = fuzz_pick(&c.bytes, 0, 20);
    if (fuzz_u8(&c.bytes) > 250) vocab = 2100;
    const lockstep_log_probs_options *options = fuzz_options(&c, &usual, sizeof usual, NULL);
    const lockstep_tensor *targets = fuzz_vector(&c, FUZZ_REQUIRED, FUZZ_INTEGERS, rows, FUZZ_COUNTS, vocab);
    const lockstep_tensor *logits = NULL, *hidden = NULL, *weight = NULL, *bias = NULL;
    if (which < 2) {
        logits = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, rows, vocab, FUZZ_NUMBERS, 0);
    } else {
        hidden = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, rows, width, FUZZ_NUMBERS, 0);
        weight = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, vocab, width, FUZZ_NUMBERS, 0);
        bias = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_LOGITS, vocab, FUZZ_NUMBERS, 0);
    }
    int backward = which == 1 || which == 4;
    const lockstep_tensor *first = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLOATS, rows, backward ? FUZZ_NUMBERS : FUZZ_NOTHING, 0);
    const lockstep_tensor *second = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLOATS, rows, backward ? FUZZ_NUMBERS : FUZZ_NOTHING, 0);
    const lockstep_tensor *third = fuzz_vector(&c, FUZZ_OPTIONAL, backward ? FUZZ_FLOAT64 : FUZZ_FLOATS, rows,
                                               backward ? FUZZ_NUMBERS : FUZZ_NOTHING, 0);
    const lockstep_tensor *fourth, *fifth, *sixth;
    lockstep_status status;
    lockstep_head *head = NULL;
    switch (which) {
    case 0:
        fourth = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLOATS, rows, FUZZ_NOTHING, 0);
        fuzz_ready(&c);
        status = lockstep_log_probs(first, second, third, fourth, logits, targets, options);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && !c.is_shared) check(first, second);
        break;
    case 1:
        fourth = fuzz_matrix(&c, FUZZ_REQUIRED, FUZZ_LOGITS, rows, vocab, FUZZ_NOTHING, 0);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_log_probs_backward(fourth, first, second, third, logits, targets, options), WORDS);
        break;
    case 2:
        fuzz_ready(&c);
        status = lockstep_linear_log_probs(first, second, third, hidden, weight, bias, targets, options);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && !c.is_shared) check(first, second);
        break;
    case 3:
        fuzz_ready(&c);
        if (fuzz_end(&c, lockstep_head_create(&head, weight, bias), WORDS) != LOCKSTEP_OK) {
            FUZZ_CHECK(head == NULL);
            break;
        }
        status = lockstep_head_log_probs(first, second, third, head, hidden, targets, options);
        if (fuzz_end(&c, status, WORDS) == LOCKSTEP_OK && !c.is_shared) check(first, second);
        lockstep_head_destroy(head);
        break;
    default:
        fourth = fuzz_matrix(&c, FUZZ_OPTIONAL, FUZZ_LOGITS, rows, width, FUZZ_NOTHING, 0);
        fifth = fuzz_matrix(&c, FUZZ_OPTIONAL, FUZZ_LOGITS, vocab, width, FUZZ_NOTHING, 0);
        sixth = fuzz_vector(&c, FUZZ_OPTIONAL, FUZZ_FLOAT32, vocab, FUZZ_NOTHING, 0);
        fuzz_ready(&c);
        fuzz_end(&c, lockstep_linear_log_probs_backward(fourth, fifth, sixth, first, second, third, hidden, weight, bias, targets,
                                                        options), WORDS);
    }
    fuzz_free(&c);
}

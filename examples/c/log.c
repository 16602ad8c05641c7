/* A log of two engines: written one sequence a call, read back in batches, measured as it is read. */
#include <lockstep.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { SEQUENCES = 20, LENGTH = 500, PROMPT = 100 };
static float rollout[LENGTH], trainer[LENGTH];
static int32_t token_ids[LENGTH];
static uint8_t mask[LENGTH];
static const char *path = "log.lockstep";

/* Some value in [-0.5, 0.5), the same in every language. */
static float value(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x = (x ^ x >> 15) * 2246822519u;
    return (float)((x ^ x >> 13) >> 8) * 0x1p-24f - 0.5f;
}

static void check(lockstep_status status) {
    if (status == LOCKSTEP_OK) return;
    fprintf(stderr, "%s: %s\n", lockstep_status_name(status), lockstep_last_error());
    exit(1);
}

static void write_log(void) {
    int64_t shape[1] = {LENGTH};
    lockstep_tensor ids = lockstep_tensor_of(token_ids, LOCKSTEP_INT32, 1, shape);
    lockstep_tensor mu = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor pi = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT32, 1, shape);
    lockstep_tensor counted = lockstep_tensor_of(mask, LOCKSTEP_BOOL, 1, shape);
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    lockstep_log_writer *writer;
    header.model = "example-0.1B";
    header.rollout_engine = "vLLM";
    header.rollout_body = "bf16";
    header.temperature = 1;
    header.log_prob_mode = LOCKSTEP_LOG_PROB_RAW;
    check(lockstep_log_writer_create(&writer, path, &header, NULL));
    sequence.token_ids = &ids;
    sequence.rollout_log_probs = &mu;
    sequence.trainer_log_probs = &pi;
    sequence.mask = &counted;
    for (uint32_t s = 0; s < SEQUENCES; s++) {
        for (uint32_t t = 0; t < LENGTH; t++) {
            uint32_t i = s * LENGTH + t;
            float half = value(i) + 0.5f;
            token_ids[t] = (int32_t)(half * 50000);
            mask[t] = t >= PROMPT;
            rollout[t] = mask[t] ? -8 * half * half : 0;
            trainer[t] = rollout[t] + (mask[t] ? 0.03125f * half * value(i + 1000000) : 0);
        }
        sequence.id = s;
        sequence.step = s / 10;
        sequence.prompt_tokens = PROMPT;
        check(lockstep_log_writer_append(writer, &sequence));
    }
    check(lockstep_log_writer_close(writer));
    lockstep_log_writer_destroy(writer);
}

/* FNV-1a of the file: the same bytes in every language. */
static uint32_t hash(size_t *size) {
    uint32_t found = 2166136261u;
    FILE *file = fopen(path, "rb");
    int byte;
    for (*size = 0; file != NULL && (byte = getc(file)) != EOF; ++*size) found = (found ^ (uint32_t)byte) * 16777619u;
    if (file != NULL) fclose(file);
    return found;
}

int main(void) {
    lockstep_log_reader *reader;
    lockstep_log_header header;
    lockstep_log_batch batch;
    lockstep_log_summary summary;
    lockstep_mismatch mismatch;
    size_t size;
    remove(path);
    write_log();
    check(lockstep_log_reader_open(&reader, path, NULL));
    header.struct_size = sizeof header;
    batch.struct_size = sizeof batch;
    mismatch.struct_size = sizeof mismatch;
    summary.struct_size = sizeof summary;
    check(lockstep_log_reader_header(&header, reader));
    printf("%s, sampled by %s in %s at temperature %g\n", header.model, header.rollout_engine, header.rollout_body,
           header.temperature);
    for (;;) {
        check(lockstep_log_reader_next(&batch, reader, 6000));
        if (batch.sequences == 0) break;
        check(lockstep_mismatch_measure(&mismatch, &batch.trainer_log_probs, &batch.rollout_log_probs, &batch.mask,
                                        &batch.offsets, NULL));
        printf("%lld sequences from id %llu, %lld tokens that count, k3 %.4g\n", (long long)batch.sequences,
               (unsigned long long)((uint64_t *)batch.ids.data)[0], (long long)mismatch.tokens, mismatch.k3.value);
    }
    check(lockstep_log_reader_summary(&summary, reader));
    lockstep_log_reader_destroy(reader);
    printf("%lld tokens, closed: %s\n", (long long)summary.tokens, summary.is_closed ? "yes" : "no");
    uint32_t found = hash(&size);
    printf("%.2f bytes a token, file hash %08x\n", (double)size / (double)summary.tokens, (unsigned)found);
    remove(path);
    return 0;
}

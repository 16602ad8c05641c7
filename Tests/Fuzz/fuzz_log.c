/* Bytes of a log, read from memory and from a file, strictly and skipping damage, a sequence and a thousand tokens at a
 * time: the same sequences each way, and what was read can be written and read again. */
#include "fuzz.h"

#include <unistd.h>

/* Makes the checksums of the header and of the frames right, and their lengths fit. */
size_t fuzz_repair(uint8_t *data, size_t size) {
    if (size < 24) return size;
    uint64_t fields = fuzz_get(data + 12, 4);
    if (fields > size - 24) fuzz_put(data + 12, fields = size - 24, 4);
    fuzz_put(data + 16, fuzz_crc32c(data + 24, (size_t)fields), 4);
    fuzz_put(data + 20, fuzz_crc32c(data, 20), 4);
    size_t place = 24 + (size_t)fields;
    while (size - place >= 16) {
        uint8_t *frame = data + place;
        if (frame[0] != 0xd1 || frame[1] != 0x4c || frame[2] != 0x53) break;
        uint64_t length = fuzz_get(frame + 4, 4);
        if (length > size - place - 16) fuzz_put(frame + 4, length = size - place - 16, 4);
        fuzz_put(frame + 8, fuzz_crc32c(frame + 16, (size_t)length), 4);
        fuzz_put(frame + 12, fuzz_crc32c(frame, 12), 4);
        place += 16 + (size_t)length;
    }
    return size;
}

typedef struct {
    lockstep_status status;
    int64_t sequences, tokens;
    uint64_t hash;
    lockstep_log_summary summary;
} outcome;

static void add(outcome *o, const void *bytes, size_t size) {
    const uint8_t *all = bytes;
    for (size_t i = 0; i < size; i++) o->hash = (o->hash ^ all[i]) * 0x100000001b3u;
}

/* Appends each sequence of a batch to a log. */
static void write_again(lockstep_log_writer *writer, const lockstep_log_batch *batch) {
    const int64_t *offsets = batch->offsets.data;
    const uint8_t *columns = batch->columns.data;
    for (int64_t i = 0; i < batch->sequences; i++) {
        lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
        int64_t count = offsets[i + 1] - offsets[i];
        const float *rewards = batch->rewards.data, *advantages = batch->advantages.data;
        lockstep_tensor ids = lockstep_tensor_of((int32_t *)batch->token_ids.data + offsets[i], LOCKSTEP_INT32, 1, &count);
        lockstep_tensor rollout =
            lockstep_tensor_of((float *)batch->rollout_log_probs.data + offsets[i], LOCKSTEP_FLOAT32, 1, &count);
        lockstep_tensor trainer =
            lockstep_tensor_of((float *)batch->trainer_log_probs.data + offsets[i], LOCKSTEP_FLOAT32, 1, &count);
        lockstep_tensor mask = lockstep_tensor_of((uint8_t *)batch->mask.data + offsets[i], LOCKSTEP_BOOL, 1, &count);
        sequence.id = ((const uint64_t *)batch->ids.data)[i];
        sequence.step = ((const int64_t *)batch->steps.data)[i];
        sequence.prompt_tokens = ((const int64_t *)batch->prompt_tokens.data)[i];
        if (!isnan(rewards[i])) sequence.reward = rewards + i;
        if (!isnan(advantages[i])) sequence.advantage = advantages + i;
        if (columns[i] & LOCKSTEP_LOG_HAS_TOKEN_IDS) sequence.token_ids = &ids;
        if (columns[i] & LOCKSTEP_LOG_HAS_ROLLOUT) sequence.rollout_log_probs = &rollout;
        if (columns[i] & LOCKSTEP_LOG_HAS_TRAINER) sequence.trainer_log_probs = &trainer;
        sequence.mask = &mask;
        FUZZ_CHECK(lockstep_log_writer_append(writer, &sequence) == LOCKSTEP_OK);
    }
}

/* Reads to the end, or to the first error. */
static outcome read_all(lockstep_log_reader *reader, int64_t max_tokens, lockstep_log_writer *writer) {
    outcome o;
    lockstep_log_batch batch;
    memset(&o, 0, sizeof o);
    for (;;) {
        memset(&batch, 0xa5, sizeof batch);
        batch.struct_size = sizeof batch;
        o.status = FUZZ_STATUS(lockstep_log_reader_next(&batch, reader, max_tokens), "byte record log memory:");
        if (o.status != LOCKSTEP_OK) {
            FUZZ_CHECK(batch.tokens == (int64_t)0xa5a5a5a5a5a5a5a5u);
            break;
        }
        if (batch.sequences == 0) break;
        const int64_t *offsets = batch.offsets.data, *positions = batch.positions.data;
        size_t sequences = (size_t)batch.sequences, tokens = (size_t)batch.tokens;
        FUZZ_CHECK(offsets[0] == 0 && offsets[batch.sequences] == batch.tokens);
        FUZZ_CHECK(batch.sequences == 1 || batch.tokens <= max_tokens);
        for (int64_t i = 0; i < batch.sequences; i++) {
            FUZZ_CHECK(offsets[i] <= offsets[i + 1] && positions[i] >= 24 && (i == 0 || positions[i] > positions[i - 1]));
            FUZZ_CHECK(((const uint8_t *)batch.columns.data)[i] >= 1 && ((const uint8_t *)batch.columns.data)[i] <= 7);
        }
        /* Of each sequence by itself, so that the batches do not show. */
        for (size_t i = 0; i < sequences; i++) {
            size_t from = (size_t)offsets[i], count = (size_t)(offsets[i + 1] - offsets[i]);
            add(&o, (const float *)batch.trainer_log_probs.data + from, 4 * count);
            add(&o, (const float *)batch.rollout_log_probs.data + from, 4 * count);
            add(&o, (const int32_t *)batch.token_ids.data + from, 4 * count);
            add(&o, (const uint8_t *)batch.mask.data + from, count);
            add(&o, (const uint64_t *)batch.ids.data + i, 8);
            add(&o, positions + i, 8);
        }
        if (writer) write_again(writer, &batch);
        o.sequences += batch.sequences;
        o.tokens += (int64_t)tokens;
    }
    o.summary.struct_size = sizeof o.summary;
    FUZZ_CHECK(lockstep_log_reader_summary(&o.summary, reader) == LOCKSTEP_OK);
    FUZZ_CHECK(o.summary.sequences == o.sequences && o.summary.tokens == o.tokens);
    FUZZ_CHECK(o.summary.position <= o.summary.size && o.summary.cut_off_bytes <= o.summary.size);
    return o;
}

static int equal(const outcome *a, const outcome *b) {
    return a->status == b->status && a->sequences == b->sequences && a->tokens == b->tokens && a->hash == b->hash;
}

static void check_header(const lockstep_log_reader *reader) {
    lockstep_log_header header;
    memset(&header, 0, sizeof header);
    header.struct_size = sizeof header;
    FUZZ_CHECK(lockstep_log_reader_header(&header, reader) == LOCKSTEP_OK && header.format_version == 1);
    const char *const texts[] = {header.model, header.trainer_engine, header.trainer_version, header.trainer_weights,
                                 header.trainer_body, header.trainer_head, header.trainer_logits,
                                 header.rollout_engine, header.rollout_version, header.rollout_weights,
                                 header.rollout_body, header.rollout_head, header.rollout_logits};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) FUZZ_CHECK(texts[i] != NULL && strlen(texts[i]) <= 65535);
    for (size_t i = 0; i < header.pairs; i++) FUZZ_CHECK(*header.keys[i] != 0 && header.values[i] != NULL);
}

/* Writers that find a file of these bytes, which are no log: they leave it as it is, unless they may begin it anew. */
static void find_no_log(const uint8_t *data, size_t size) {
    static uint8_t left[1 << 20];
    lockstep_log_writer_options options = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    for (options.mode = LOCKSTEP_LOG_CREATE; options.mode <= LOCKSTEP_LOG_REPLACE; options.mode++) {
        lockstep_log_writer *writer = NULL;
        const char *path = fuzz_write("log.lockstep", data, size);
        lockstep_status status = FUZZ_STATUS(lockstep_log_writer_create(&writer, path, NULL, &options), "log.lockstep");
        if (status == LOCKSTEP_OK) {
            FUZZ_CHECK(options.mode != LOCKSTEP_LOG_CREATE);
            lockstep_log_writer_destroy(writer);
            continue;
        }
        FILE *file = fopen(path, "rb");
        FUZZ_CHECK(writer == NULL && file != NULL && fread(left, 1, sizeof left, file) == size);
        FUZZ_CHECK(memcmp(left, data, size) == 0);
        fclose(file);
    }
}

void fuzz_one(const uint8_t *data, size_t size) {
    lockstep_log_reader_options skip = LOCKSTEP_LOG_READER_OPTIONS_INIT;
    lockstep_log_reader *reader = (void *)&reader;
    lockstep_log_writer *writer = NULL;
    skip.damage = LOCKSTEP_LOG_DAMAGE_SKIP;
    lockstep_status status = FUZZ_STATUS(lockstep_log_reader_open_memory(&reader, data, size, NULL), "log memory bytes");
    const char *path = fuzz_write("log.lockstep", data, size);
    if (status != LOCKSTEP_OK) {
        FUZZ_CHECK(reader == (void *)&reader);
        FUZZ_CHECK(lockstep_log_reader_open(&reader, path, &skip) == status || size == 0);
        if (size < 1 << 20) find_no_log(data, size);
        return;
    }
    check_header(reader);
    outcome strict = read_all(reader, 1, NULL);
    FUZZ_CHECK(lockstep_log_reader_seek(reader, 0) == LOCKSTEP_OK);
    outcome wide = read_all(reader, 1000, NULL);
    FUZZ_CHECK(equal(&strict, &wide));
    lockstep_log_reader_destroy(reader);

    FUZZ_CHECK(lockstep_log_reader_open(&reader, path, NULL) == LOCKSTEP_OK);
    outcome file = read_all(reader, 7, NULL);
    FUZZ_CHECK(equal(&strict, &file));
    lockstep_log_reader_destroy(reader);

    FUZZ_CHECK(lockstep_log_reader_open_memory(&reader, data, size, &skip) == LOCKSTEP_OK);
    char again[256];
    snprintf(again, sizeof again, "%s/again.lockstep", fuzz_folder());
    unlink(again);
    FUZZ_CHECK(lockstep_log_writer_create(&writer, again, NULL, NULL) == LOCKSTEP_OK);
    outcome skipped = read_all(reader, 100, writer);
    FUZZ_CHECK(skipped.status == LOCKSTEP_OK && skipped.sequences >= strict.sequences);
    FUZZ_CHECK((skipped.summary.damaged_places > 0) == (strict.status != LOCKSTEP_OK));
    if (strict.status == LOCKSTEP_OK) FUZZ_CHECK(equal(&strict, &skipped));
    lockstep_log_reader_destroy(reader);
    FUZZ_CHECK(lockstep_log_writer_close(writer) == LOCKSTEP_OK);
    lockstep_log_writer_destroy(writer);
    FUZZ_CHECK(lockstep_log_reader_open(&reader, again, NULL) == LOCKSTEP_OK);
    outcome written = read_all(reader, 100, NULL);
    FUZZ_CHECK(written.status == LOCKSTEP_OK && written.summary.is_closed == 1);
    FUZZ_CHECK(written.sequences == skipped.sequences && written.tokens == skipped.tokens);
    lockstep_log_reader_destroy(reader);

    /* Somewhere in the middle, and going on with the log: refused or done. */
    lockstep_log_writer_options append = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    append.mode = LOCKSTEP_LOG_APPEND;
    path = fuzz_write("log.lockstep", data, size);
    writer = NULL;
    status = FUZZ_STATUS(lockstep_log_writer_create(&writer, path, NULL, &append), "log.lockstep");
    if (strict.status == LOCKSTEP_OK) FUZZ_CHECK(status == LOCKSTEP_OK);
    if (status == LOCKSTEP_OK) {
        FUZZ_CHECK(lockstep_log_writer_close(writer) == LOCKSTEP_OK);
        lockstep_log_writer_destroy(writer);
        FUZZ_CHECK(lockstep_log_reader_open(&reader, path, NULL) == LOCKSTEP_OK);
        outcome gone_on = read_all(reader, 100, NULL);
        if (strict.status == LOCKSTEP_OK) FUZZ_CHECK(gone_on.status == LOCKSTEP_OK);
        FUZZ_CHECK(gone_on.sequences == strict.sequences && gone_on.hash == strict.hash);
        lockstep_log_reader_destroy(reader);
    }
    FUZZ_CHECK(lockstep_log_reader_open_memory(&reader, data, size, NULL) == LOCKSTEP_OK);
    if (FUZZ_STATUS(lockstep_log_reader_seek(reader, (int64_t)(fuzz_crc32c(data, size) % (size + 1))), "position log") ==
        LOCKSTEP_OK)
        read_all(reader, 100, NULL);
    lockstep_log_reader_destroy(reader);
}

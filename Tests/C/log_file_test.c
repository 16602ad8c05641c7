/* Section 5 from C: logs are written and read, and every misuse is refused by name. */
#include "test.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

static char path[64];

static int64_t shape_of_five[1] = {5}, shape_of_four[1] = {4};
static float rollout[5] = {-1.0f, -0.5f, -2.0f, -0.25f, -3.0f};
static float trainer[5] = {-1.25f, -0.5f, -2.5f, -0.125f, -3.0f};
static int32_t token_ids[5] = {11, 22, 33, 44, 50000};
static uint8_t mask[5] = {0, 0, 1, 1, 1};

typedef struct {
    lockstep_log_header header;
    lockstep_log_writer_options writer_options;
    lockstep_log_reader_options reader_options;
    lockstep_log_sequence sequence;
    lockstep_tensor token_ids, rollout, trainer, mask;
    float reward;
    const char *path, *keys[2], *values[2];
    lockstep_log_writer *writer;
    lockstep_log_reader *reader;
    uint32_t batch_size, summary_size, header_size;
    int64_t max_tokens, position;
    const void *bytes;
    size_t size;
    struct {
        lockstep_log_writer *writer;
        lockstep_log_reader *reader;
        unsigned char batch[sizeof(lockstep_log_batch)];
    } outputs;
} fixture;

/* What the tests below work on: a log with three sequences, and an open writer of another. */
static lockstep_log_writer *shared_writer;
static lockstep_log_reader *shared_reader;

static void fixture_init(fixture *f) {
    lockstep_log_header header = LOCKSTEP_LOG_HEADER_INIT;
    lockstep_log_writer_options writer_options = LOCKSTEP_LOG_WRITER_OPTIONS_INIT;
    lockstep_log_reader_options reader_options = LOCKSTEP_LOG_READER_OPTIONS_INIT;
    lockstep_log_sequence sequence = LOCKSTEP_LOG_SEQUENCE_INIT;
    memset(f, 0, sizeof *f);
    f->header = header;
    f->header.model = "tiny";
    f->writer_options = writer_options;
    f->writer_options.mode = LOCKSTEP_LOG_REPLACE;
    f->reader_options = reader_options;
    f->sequence = sequence;
    f->token_ids = lockstep_tensor_of(token_ids, LOCKSTEP_INT32, 1, shape_of_five);
    f->rollout = lockstep_tensor_of(rollout, LOCKSTEP_FLOAT32, 1, shape_of_five);
    f->trainer = lockstep_tensor_of(trainer, LOCKSTEP_FLOAT32, 1, shape_of_five);
    f->mask = lockstep_tensor_of(mask, LOCKSTEP_UINT8, 1, shape_of_five);
    f->sequence.token_ids = &f->token_ids;
    f->sequence.rollout_log_probs = &f->rollout;
    f->sequence.trainer_log_probs = &f->trainer;
    f->sequence.mask = &f->mask;
    f->path = path;
    f->keys[0] = "a";
    f->keys[1] = "b";
    f->values[0] = f->values[1] = "v";
    f->writer = shared_writer;
    f->reader = shared_reader;
    f->batch_size = sizeof(lockstep_log_batch);
    f->summary_size = sizeof(lockstep_log_summary);
    f->header_size = sizeof(lockstep_log_header);
    f->max_tokens = 100;
}

static lockstep_status make(fixture *f) {
    lockstep_log_writer *writer = NULL;
    lockstep_status status = lockstep_log_writer_create(&writer, f->path, &f->header, &f->writer_options);
    if (status == LOCKSTEP_OK) lockstep_log_writer_destroy(writer);
    return status;
}

static lockstep_status append(fixture *f) { return lockstep_log_writer_append(f->writer, &f->sequence); }

static lockstep_status open_file(fixture *f) {
    lockstep_log_reader *reader = NULL;
    lockstep_status status = lockstep_log_reader_open(&reader, f->path, &f->reader_options);
    lockstep_log_reader_destroy(reader);
    return status;
}

static lockstep_status open_bytes(fixture *f) {
    return lockstep_log_reader_open_memory(&f->outputs.reader, f->bytes, f->size, &f->reader_options);
}

/* Results whose struct_size is wrong: nothing else of them is written. */
static lockstep_status next(fixture *f) {
    lockstep_status status;
    lockstep_log_batch batch;
    memset(&batch, TEST_CANARY, sizeof batch);
    batch.struct_size = f->batch_size;
    status = lockstep_log_reader_next(&batch, f->reader, f->max_tokens);
    memset(&batch.struct_size, TEST_CANARY, sizeof batch.struct_size);
    if (status != LOCKSTEP_OK) memcpy(f->outputs.batch, &batch, sizeof batch);
    return status;
}

static lockstep_status seek(fixture *f) { return lockstep_log_reader_seek(f->reader, f->position); }

static lockstep_status summarise(fixture *f) {
    lockstep_log_summary summary;
    summary.struct_size = f->summary_size;
    return lockstep_log_reader_summary(&summary, f->reader);
}

static lockstep_status head(fixture *f) {
    lockstep_log_header header;
    header.struct_size = f->header_size;
    return lockstep_log_reader_header(&header, f->reader);
}

static void a_log_comes_back(void) {
    fixture f;
    lockstep_log_writer *writer;
    lockstep_log_reader *reader;
    lockstep_log_batch batch;
    lockstep_log_summary summary;
    lockstep_log_header header;
    lockstep_mismatch mismatch;
    fixture_init(&f);
    f.header.temperature = 0.75;
    f.header.top_k = 40;
    f.header.log_prob_mode = LOCKSTEP_LOG_PROB_PROCESSED;
    f.header.rollout_engine = "engine";
    f.header.pairs = 2;
    f.header.keys = f.keys;
    f.header.values = f.values;
    CHECK_OK(lockstep_log_writer_create(&writer, path, &f.header, &f.writer_options));
    for (int i = 0; i < 3; i++) {
        f.sequence.id = UINT64_MAX - (uint64_t)i;
        f.sequence.step = i;
        f.reward = 0.5f;
        f.sequence.reward = i == 1 ? &f.reward : NULL;
        CHECK_OK(lockstep_log_writer_append(writer, &f.sequence));
    }
    CHECK_OK(lockstep_log_writer_sync(writer));
    CHECK_OK(lockstep_log_writer_close(writer));
    CHECK_OK(lockstep_log_writer_close(writer));
    CHECK(lockstep_log_writer_append(writer, &f.sequence) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    lockstep_log_writer_destroy(writer);

    CHECK_OK(lockstep_log_reader_open(&reader, path, NULL));
    header.struct_size = sizeof header;
    CHECK_OK(lockstep_log_reader_header(&header, reader));
    CHECK(strcmp(header.model, "tiny") == 0 && strcmp(header.rollout_engine, "engine") == 0);
    CHECK(strcmp(header.trainer_engine, "") == 0 && header.temperature == 0.75 && header.top_p == -1);
    CHECK(header.top_k == 40 && header.format_version == 1 && header.created == 0);
    CHECK(header.log_prob_mode == LOCKSTEP_LOG_PROB_PROCESSED && header.pairs == 2);
    CHECK(strcmp(header.keys[1], "b") == 0 && strcmp(header.values[1], "v") == 0);
    batch.struct_size = sizeof batch;
    CHECK_OK(lockstep_log_reader_next(&batch, reader, 12));
    CHECK(batch.sequences == 2 && batch.tokens == 10 && batch.struct_size == sizeof batch);
    CHECK(((uint64_t *)batch.ids.data)[1] == UINT64_MAX - 1 && ((int64_t *)batch.steps.data)[1] == 1);
    CHECK(((int64_t *)batch.offsets.data)[2] == 10 && batch.offsets.shape[0] == 3);
    CHECK(memcmp((float *)batch.trainer_log_probs.data + 5, trainer, sizeof trainer) == 0);
    CHECK(memcmp((int32_t *)batch.token_ids.data + 5, token_ids, sizeof token_ids) == 0);
    CHECK(memcmp((uint8_t *)batch.mask.data + 5, mask, sizeof mask) == 0);
    CHECK(isnan(((float *)batch.rewards.data)[0]) && ((float *)batch.rewards.data)[1] == 0.5f);
    CHECK(((int64_t *)batch.prompt_tokens.data)[0] == -1 && ((uint8_t *)batch.columns.data)[0] == 7);
    /* The columns go into section 4 as they are. */
    mismatch.struct_size = sizeof mismatch;
    CHECK_OK(lockstep_mismatch_measure(&mismatch, &batch.trainer_log_probs, &batch.rollout_log_probs, &batch.mask,
                                       &batch.offsets, NULL));
    CHECK(mismatch.tokens == 6 && mismatch.masked_tokens == 4 && mismatch.max_abs_log_ratio == 0.5);
    CHECK_OK(lockstep_log_reader_next(&batch, reader, 12));
    CHECK(batch.sequences == 1);
    CHECK_OK(lockstep_log_reader_next(&batch, reader, 12));
    CHECK(batch.sequences == 0 && batch.tokens == 0);
    summary.struct_size = sizeof summary;
    CHECK_OK(lockstep_log_reader_summary(&summary, reader));
    CHECK(summary.is_closed == 1 && summary.sequences == 3 && summary.tokens == 15);
    CHECK(summary.position == summary.size && summary.cut_off_bytes == 0);
    CHECK_OK(lockstep_log_reader_seek(reader, 0));
    CHECK_OK(lockstep_log_reader_next(&batch, reader, 1));
    CHECK(batch.sequences == 1 && ((uint64_t *)batch.ids.data)[0] == UINT64_MAX);
    lockstep_log_reader_destroy(reader);
}

static void destroying_nothing_is_fine(void) {
    lockstep_log_writer_destroy(NULL);
    lockstep_log_reader_destroy(NULL);
}

static void writers_are_refused(void) {
    ACCEPTED(make, );
    ACCEPTED(make, f.header.pairs = 2; f.header.keys = f.keys; f.header.values = f.values);
    REFUSED(make, INVALID_ARGUMENT, "path", f.path = NULL);
    REFUSED(make, INVALID_ARGUMENT, "path", f.path = "");
    REFUSED(make, INVALID_ARGUMENT, "UTF-8", f.path = "\xff\xfe");
    REFUSED(make, FILE, "No such file", f.path = "/nowhere/at/all.lockstep");
    REFUSED(make, FILE, "exists", f.writer_options.mode = LOCKSTEP_LOG_CREATE);
    REFUSED(make, INVALID_ARGUMENT, "mode", f.writer_options.mode = 3);
    REFUSED(make, INVALID_ARGUMENT, "sync_every", f.writer_options.sync_every = -1);
    REFUSED(make, INVALID_ARGUMENT, "struct_size", f.writer_options.struct_size = 3);
    REFUSED(make, INVALID_ARGUMENT, "header: struct_size", f.header.struct_size = 8);
    REFUSED(make, INVALID_ARGUMENT, "model", f.header.model = "\xc3");
    REFUSED(make, INVALID_ARGUMENT, "temperature", f.header.temperature = -2);
    REFUSED(make, INVALID_ARGUMENT, "temperature", f.header.temperature = INFINITY);
    REFUSED(make, INVALID_ARGUMENT, "top_p", f.header.top_p = 0);
    REFUSED(make, INVALID_ARGUMENT, "min_p", f.header.min_p = 2);
    REFUSED(make, INVALID_ARGUMENT, "top_k", f.header.top_k = -5);
    REFUSED(make, INVALID_ARGUMENT, "log_prob_mode", f.header.log_prob_mode = 3);
    REFUSED(make, INVALID_ARGUMENT, "keys", f.header.pairs = 1);
    REFUSED(make, INVALID_ARGUMENT, "pairs", f.header.pairs = SIZE_MAX);
    REFUSED(make, INVALID_ARGUMENT, "twice", f.header.pairs = 2; f.header.keys = f.keys;
            f.header.values = f.values; f.keys[1] = "a");
    REFUSED(make, INVALID_ARGUMENT, "keys[1]", f.header.pairs = 2; f.header.keys = f.keys;
            f.header.values = f.values; f.keys[1] = NULL);
    CHECK(lockstep_log_writer_create(NULL, path, NULL, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
}

static void sequences_are_refused(void) {
    ACCEPTED(append, );
    ACCEPTED(append, f.sequence.mask = NULL; f.sequence.trainer_log_probs = NULL);
    REFUSED(append, INVALID_ARGUMENT, "writer", f.writer = NULL);
    REFUSED(append, INVALID_ARGUMENT, "sequence: struct_size", f.sequence.struct_size = 8);
    REFUSED(append, INVALID_ARGUMENT, "reserved", f.sequence.reserved = 1);
    REFUSED(append, INVALID_ARGUMENT, "give one of them", f.sequence.token_ids = f.sequence.rollout_log_probs =
            f.sequence.trainer_log_probs = NULL);
    REFUSED(append, INVALID_ARGUMENT, "rollout_log_probs: has 4", f.rollout.shape = shape_of_four);
    REFUSED(append, INVALID_ARGUMENT, "mask: has 4", f.mask.shape = shape_of_four);
    REFUSED(append, INVALID_ARGUMENT, "mask", f.mask.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT32));
    REFUSED(append, INVALID_ARGUMENT, "trainer_log_probs", f.trainer.dtype = lockstep_dtype_of(LOCKSTEP_FLOAT64));
    REFUSED(append, INVALID_ARGUMENT, "token_ids", f.token_ids.dtype = lockstep_dtype_of(LOCKSTEP_UINT8));
    REFUSED(append, INVALID_ARGUMENT, "token_ids", f.token_ids.data = NULL);
    REFUSED(append, INVALID_ARGUMENT, "prompt_tokens is 6", f.sequence.prompt_tokens = 6);
    REFUSED(append, INVALID_ARGUMENT, "prompt_tokens is -2", f.sequence.prompt_tokens = -2);
    CHECK(lockstep_log_writer_append(shared_writer, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_log_writer_sync(NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_log_writer_close(NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
}

static void readers_are_refused(void) {
    ACCEPTED(open_file, );
    REFUSED(open_file, INVALID_ARGUMENT, "path", f.path = NULL);
    REFUSED(open_file, FILE, "No such file", f.path = "/nowhere/at/all.lockstep");
    REFUSED(open_file, FILE, "regular", f.path = "/dev/null");
    REFUSED(open_file, INVALID_ARGUMENT, "damage", f.reader_options.damage = 2);
    REFUSED(open_file, INVALID_ARGUMENT, "struct_size", f.reader_options.struct_size = 4);
    REFUSED(open_bytes, INVALID_ARGUMENT, "bytes", f.size = 1);
    REFUSED(open_bytes, INVALID_ARGUMENT, "bytes", f.bytes = path; f.size = SIZE_MAX);
    REFUSED(open_bytes, BAD_DATA, "empty", f.size = 0);
    REFUSED(open_bytes, BAD_DATA, "no Lockstep log", f.bytes = "PK\003\004"; f.size = 4);
    CHECK(lockstep_log_reader_open(NULL, path, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    CHECK(lockstep_log_reader_open_memory(NULL, path, 1, NULL) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    ACCEPTED(next, );
    REFUSED(next, INVALID_ARGUMENT, "reader", f.reader = NULL);
    REFUSED(next, INVALID_ARGUMENT, "struct_size", f.batch_size = 8);
    REFUSED(next, INVALID_ARGUMENT, "max_tokens is 0", f.max_tokens = 0);
    REFUSED(next, INVALID_ARGUMENT, "max_tokens is -1", f.max_tokens = -1);
    CHECK(lockstep_log_reader_next(NULL, shared_reader, 1) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    ACCEPTED(seek, );
    REFUSED(seek, INVALID_ARGUMENT, "reader", f.reader = NULL);
    REFUSED(seek, INVALID_ARGUMENT, "position is 1", f.position = 1);
    REFUSED(seek, INVALID_ARGUMENT, "position is -1", f.position = -1);
    REFUSED(seek, INVALID_ARGUMENT, "position", f.position = INT64_MAX);
    ACCEPTED(summarise, );
    REFUSED(summarise, INVALID_ARGUMENT, "reader", f.reader = NULL);
    REFUSED(summarise, INVALID_ARGUMENT, "struct_size", f.summary_size = 0);
    CHECK(lockstep_log_reader_summary(NULL, shared_reader) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    ACCEPTED(head, );
    REFUSED(head, INVALID_ARGUMENT, "reader", f.reader = NULL);
    REFUSED(head, INVALID_ARGUMENT, "struct_size", f.header_size = 0);
    CHECK(lockstep_log_reader_header(NULL, shared_reader) == LOCKSTEP_ERROR_INVALID_ARGUMENT);
}

/* A log cut at any byte, read from memory: whole records or an error, never a crash. */
static void any_cut_is_read(void) {
    static unsigned char bytes[4096];
    FILE *file = fopen(path, "rb");
    size_t size = file == NULL ? 0 : fread(bytes, 1, sizeof bytes, file);
    if (file != NULL) fclose(file);
    CHECK(size > 100 && size < sizeof bytes);
    for (size_t cut = 0; cut <= size; cut++) {
        lockstep_log_reader *reader = NULL;
        lockstep_log_batch batch;
        /* Exactly as long, so that a tool that watches memory sees a read beyond. */
        unsigned char *part = malloc(cut > 0 ? cut : 1);
        memcpy(part, bytes, cut);
        if (lockstep_log_reader_open_memory(&reader, part, cut, NULL) == LOCKSTEP_OK) {
            batch.struct_size = sizeof batch;
            CHECK_OK(lockstep_log_reader_next(&batch, reader, 1000));
            CHECK(batch.sequences >= 0 && batch.sequences <= 3 && batch.tokens == 5 * batch.sequences);
        }
        lockstep_log_reader_destroy(reader);
        free(part);
    }
}

int main(void) {
    char other[80], folder[] = "/tmp/lockstep-log-XXXXXX";
    if (mkdtemp(folder) == NULL) return 1;
    snprintf(path, sizeof path, "%s/a.lockstep", folder);
    snprintf(other, sizeof other, "%s/b.lockstep", folder);
    TEST(a_log_comes_back);
    TEST(any_cut_is_read);
    CHECK_OK(lockstep_log_writer_create(&shared_writer, other, NULL, NULL));
    CHECK_OK(lockstep_log_reader_open(&shared_reader, path, NULL));
    TEST(destroying_nothing_is_fine);
    TEST(writers_are_refused);
    TEST(sequences_are_refused);
    TEST(readers_are_refused);
    lockstep_log_reader_destroy(shared_reader);
    lockstep_log_writer_destroy(shared_writer);
    unlink(path);
    unlink(other);
    rmdir(folder);
    return test_report();
}

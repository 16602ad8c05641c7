/* The host's world: its floating-point mode, its threads, its forks, and its memory. */
#include "arguments.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* The floating-point mode of this thread: flush-to-zero with denormals-are-zero, and rounding up. */
#if defined(__x86_64__)
#include <xmmintrin.h>
enum { FLUSH = 0x8040, UPWARD = 0x4000, CONTROL = 0xffc0 };
static uint64_t host_mode_get(void) { return _mm_getcsr(); }
static void host_mode_set(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { FLUSH = 1 << 24 | 1 << 19, UPWARD = 1 << 22, CONTROL = 0x7ffffff };
static uint64_t host_mode_get(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void host_mode_set(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

enum { ROWS = 40, VOCAB = 3000, H = 24 };

/* Inputs that lose bits where subnormals are flushed: logits far apart, and values below 2^-126. */
static float logits[ROWS * VOCAB], hidden[ROWS * H], weight[VOCAB * H], tiny[ROWS];
static int32_t targets[ROWS];

/* Everything a call of each family returns. */
typedef struct {
    float log_probs[ROWS], entropy[ROWS], fused[ROWS], gradient[8 * VOCAB];
    uint16_t halves[ROWS];
    lockstep_mismatch mismatch;
} results;

static void make_inputs(void) {
    uint32_t random = 42;
    for (int i = 0; i < ROWS * VOCAB; i++) {
        random = random * 1664525u + 1013904223u;
        logits[i] = (float)(random >> 8) * 0x1p-17f - 128;  /* down to e^-128: subnormal */
    }
    for (int i = 0; i < ROWS * H; i++) {
        random = random * 1664525u + 1013904223u;
        hidden[i] = (float)(random >> 8) * 0x1p-149f;  /* half of them subnormal */
    }
    for (int i = 0; i < VOCAB * H; i++) {
        random = random * 1664525u + 1013904223u;
        weight[i] = (float)(random >> 8) * 0x1p103f;  /* products of ordinary size */
    }
    for (int i = 0; i < ROWS; i++) {
        targets[i] = (i * 71) % VOCAB;
        tiny[i] = (float)(i + 1) * 0x1p-30f;  /* subnormal in fp16 */
        if (i % 2) tiny[i] = (float)i * 0x1p-140f;  /* subnormal in fp32 and bf16 */
    }
}

static void compute(results *r, int threads) {
    argument x, h, w, y, out, entropy, d, up, source, destination, a, b;
    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
    lockstep_mismatch_options mismatch = LOCKSTEP_MISMATCH_OPTIONS_INIT;
    lockstep_convert_options convert = LOCKSTEP_CONVERT_OPTIONS_INIT;
    options.threads = mismatch.threads = convert.threads = threads;
    memset(r, 0, sizeof *r);
    argument_init(&x, logits, LOCKSTEP_FLOAT32, ROWS, VOCAB);
    argument_init(&h, hidden, LOCKSTEP_FLOAT32, ROWS, H);
    argument_init(&w, weight, LOCKSTEP_FLOAT32, VOCAB, H);
    argument_init(&y, targets, LOCKSTEP_INT32, ROWS, 0);
    argument_init(&out, r->log_probs, LOCKSTEP_FLOAT32, ROWS, 0);
    argument_init(&entropy, r->entropy, LOCKSTEP_FLOAT32, ROWS, 0);
    CHECK_OK(lockstep_log_probs(&out.tensor, &entropy.tensor, NULL, NULL, &x.tensor, &y.tensor, &options));
    out.tensor.data = r->fused;
    CHECK_OK(lockstep_linear_log_probs(&out.tensor, NULL, NULL, &h.tensor, &w.tensor, NULL, &y.tensor, &options));
    argument_init(&d, r->gradient, LOCKSTEP_FLOAT32, 8, VOCAB);
    argument_init(&up, tiny, LOCKSTEP_FLOAT32, 8, 0);
    x.shape[0] = y.shape[0] = 8;
    CHECK_OK(lockstep_log_probs_backward(&d.tensor, &up.tensor, NULL, NULL, &x.tensor, &y.tensor, &options));
    argument_init(&source, tiny, LOCKSTEP_FLOAT32, ROWS, 0);
    argument_init(&destination, r->halves, LOCKSTEP_BFLOAT16, ROWS, 0);
    CHECK_OK(lockstep_convert(&destination.tensor, NULL, &source.tensor, &convert));
    r->mismatch.struct_size = sizeof r->mismatch;
    argument_init(&a, r->log_probs, LOCKSTEP_FLOAT32, ROWS, 0);
    argument_init(&b, tiny, LOCKSTEP_FLOAT32, ROWS, 0);
    CHECK_OK(lockstep_mismatch_measure(&r->mismatch, &a.tensor, &b.tensor, NULL, NULL, &mismatch));
}

static results expected;

static int as_expected(int threads) {
    results r;
    compute(&r, threads);
    return memcmp(&r, &expected, sizeof r) == 0;
}

/* The inputs must be able to show the difference: with flushing on, plain C computes other values. */
static void the_hosts_mode_changes_nothing(void) {
    volatile float least = 0x1p-149f, one = 1;
    uint64_t before = host_mode_get();
    for (int rounding = 0; rounding < 2; rounding++) {
        uint64_t mode = (before | FLUSH) | (rounding ? UPWARD : 0);
        host_mode_set(mode);
        int flushed = least * one == 0;
        int alone = as_expected(1), together = as_expected(3);
        uint64_t after = host_mode_get();
        /* An error on the way must restore the mode too. */
        lockstep_status status = lockstep_log_probs(NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        uint64_t after_error = host_mode_get();
        host_mode_set(before);
        CHECK(flushed);
        CHECK(alone);
        CHECK(together);
        CHECK((after & CONTROL) == (mode & CONTROL));
        CHECK((after_error & CONTROL) == (mode & CONTROL));
        CHECK(status == LOCKSTEP_ERROR_INVALID_ARGUMENT);
    }
}

static void threads_change_nothing(void) {
    for (int threads = 1; threads <= 9; threads += 2) CHECK(as_expected(threads));
    CHECK(as_expected(0));
}

static void *compute_often(void *wrong) {
    for (int i = 0; i < 10; i++)
        if (!as_expected(1 + i % 4)) *(int *)wrong = 1;
    return NULL;
}

/* `const` means concurrently: eight host threads on the same inputs, each asking for threads of its own. */
static void eight_threads_at_once(void) {
    pthread_t threads[8];
    int wrong[8] = {0};
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&threads[i], NULL, compute_often, &wrong[i]) == 0);
    for (int i = 0; i < 8; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(!wrong[i]);
    }
}

static void *fail_once(void *message) {
    strcpy(message, lockstep_last_error());  /* what the other thread did is not seen here */
    lockstep_convert(NULL, NULL, NULL, NULL);
    return NULL;
}

static void error_text_belongs_to_its_thread(void) {
    char before[512], seen[512] = "unset";
    pthread_t thread;
    CHECK(lockstep_log_probs(NULL, NULL, NULL, NULL, NULL, NULL, NULL) != LOCKSTEP_OK);
    strcpy(before, lockstep_last_error());
    CHECK(strlen(before) > 0);
    CHECK(pthread_create(&thread, NULL, fail_once, seen) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(strcmp(seen, "") == 0);
    CHECK(strcmp(lockstep_last_error(), before) == 0);
}

/* A message with a path that is longer than there is room for ends with what is wrong all the same (found by fuzzing), and
 * cuts no character. */
static void a_long_message_keeps_its_end(void) {
    for (int shift = 0; shift < 4; shift++) {
        char name[1024] = "file:/nowhere/abc";
        lockstep_task *task = NULL;
        name[14 + shift] = 0;
        for (int i = 0; i < 160; i++) strcat(name, "\xe2\x82\xac"); /* a character of three bytes */
        CHECK(lockstep_task_create(&task, name, NULL) == LOCKSTEP_ERROR_FILE && task == NULL);
        const char *text = lockstep_last_error();
        size_t length = strlen(text);
        CHECK(length > 500 - 8 && length < 512);
        CHECK(strncmp(text, "/nowhere/", 9) == 0 && strstr(text, "...") != NULL && strstr(text, ": cannot be opened") != NULL);
        int marks = 0;
        for (size_t i = 0; i < length; i++) {
            marks += (unsigned char)text[i] == 0xe2;
            if ((unsigned char)text[i] == 0xe2)
                CHECK((unsigned char)text[i + 1] == 0x82 && (unsigned char)text[i + 2] == 0xac);
            else if ((unsigned char)text[i] >= 0x80)
                CHECK(i > 0 && (unsigned char)text[i - 1] >= 0x80);
        }
        CHECK(marks > 100);
    }
}

static volatile int stop;

static void *compute_until_stopped(void *wrong) {
    while (!stop)
        if (!as_expected(3)) *(int *)wrong = 1;
    return NULL;
}

/* Forks while another thread is in the pool: the child computes with threads of its own, and ends. */
static void fork_is_survived(void) {
    pthread_t thread;
    int wrong = 0;
    stop = 0;
    CHECK(pthread_create(&thread, NULL, compute_until_stopped, &wrong) == 0);
    for (int i = 0; i < 20; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            alarm(60);  /* a child that hangs is killed, and seen below */
            int right = as_expected(3) && as_expected(1);
            pid_t grandchild = fork();
            if (grandchild == 0) {
                alarm(60);
                _exit(as_expected(2) ? 0 : 1);
            }
            int status = 1;
            waitpid(grandchild, &status, 0);
            _exit(right && status == 0 ? 0 : 1);
        }
        int status = 1;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(status == 0);
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(!wrong);
    CHECK(as_expected(3));
}

/* `count` bytes that end (or start) at the edge of a page nobody may touch. */
static unsigned char *fenced(size_t count, int at_end) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE), size = (count + page - 1) / page * page;
    unsigned char *base = mmap(NULL, size + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base + page, size, PROT_READ | PROT_WRITE) != 0) abort();
    return at_end ? base + page + size - count : base + page;
}

/* No byte outside the buffers is touched: the pages on both sides would end the process. */
static void only_the_buffers_are_touched(void) {
    static const int vocabs[] = {1, 2, 15, 16, 17, 63, 64, 65, 130, 2047, 2049};
    for (int at_end = 0; at_end < 2; at_end++)
        for (size_t i = 0; i < sizeof vocabs / sizeof *vocabs; i++)
            for (int set = LOCKSTEP_INSTRUCTION_SET_BASELINE; set <= LOCKSTEP_INSTRUCTION_SET_NEON; set++)
                for (int bytes = 2; bytes <= 4; bytes += 2) {
                    enum { N = 3, WIDTH = 19 };
                    const int vocab = vocabs[i], dtype = bytes == 4 ? LOCKSTEP_FLOAT32 : LOCKSTEP_BFLOAT16;
                    if (!lockstep_has_instruction_set(set)) continue;
                    /* All zero: a legal value in every format. */
                    argument x, h, w, y, out, d, dh, dw, wide, narrow;
                    const size_t matrix = (size_t)(N * vocab), rows = sizeof(float) * N;
                    argument_init(&x, fenced(matrix * (size_t)bytes, at_end), dtype, N, vocab);
                    argument_init(&d, fenced(matrix * (size_t)bytes, at_end), dtype, N, vocab);
                    argument_init(&h, fenced((size_t)(N * WIDTH * bytes), at_end), dtype, N, WIDTH);
                    argument_init(&w, fenced((size_t)(vocab * WIDTH * bytes), at_end), dtype, vocab, WIDTH);
                    argument_init(&dh, fenced(rows * WIDTH, at_end), LOCKSTEP_FLOAT32, N, WIDTH);
                    argument_init(&dw, fenced((size_t)vocab * WIDTH * 4, at_end), LOCKSTEP_FLOAT32, vocab, WIDTH);
                    argument_init(&y, fenced(rows, at_end), LOCKSTEP_INT32, N, 0);
                    argument_init(&out, fenced(rows, at_end), LOCKSTEP_FLOAT32, N, 0);
                    argument_init(&wide, fenced(matrix * 4, at_end), LOCKSTEP_FLOAT32, N, vocab);
                    argument_init(&narrow, fenced(matrix, at_end), LOCKSTEP_FLOAT8_E5M2, N, vocab);
                    lockstep_log_probs_options options = LOCKSTEP_LOG_PROBS_OPTIONS_INIT;
                    lockstep_convert_options convert = LOCKSTEP_CONVERT_OPTIONS_INIT;
                    lockstep_mismatch_options mismatch = LOCKSTEP_MISMATCH_OPTIONS_INIT;
                    options.instruction_set = convert.instruction_set = mismatch.instruction_set = set;
                    options.threads = convert.threads = mismatch.threads = 1;
                    CHECK_OK(lockstep_log_probs(&out.tensor, NULL, NULL, NULL, &x.tensor, &y.tensor, &options));
                    options.top_k = 3;
                    CHECK_OK(lockstep_log_probs(&out.tensor, NULL, NULL, NULL, &x.tensor, &y.tensor, &options));
                    options.top_k = 0;
                    CHECK_OK(lockstep_log_probs_backward(&d.tensor, &out.tensor, NULL, NULL, &x.tensor, &y.tensor,
                                                         &options));
                    CHECK_OK(lockstep_linear_log_probs(&out.tensor, NULL, NULL, &h.tensor, &w.tensor, NULL,
                                                       &y.tensor, &options));
                    CHECK_OK(lockstep_linear_log_probs_backward(&dh.tensor, &dw.tensor, NULL, &out.tensor, NULL,
                                                                NULL, &h.tensor, &w.tensor, NULL, &y.tensor,
                                                                &options));
                    lockstep_head *head = NULL;
                    CHECK_OK(lockstep_head_create(&head, &w.tensor, NULL));
                    CHECK_OK(lockstep_head_log_probs(&out.tensor, NULL, NULL, head, &h.tensor, &y.tensor, &options));
                    lockstep_head_destroy(head);
                    CHECK_OK(lockstep_convert(&wide.tensor, NULL, &x.tensor, &convert));
                    CHECK_OK(lockstep_convert(&narrow.tensor, NULL, &wide.tensor, &convert));
                    lockstep_mismatch result;
                    result.struct_size = sizeof result;
                    CHECK_OK(lockstep_mismatch_measure(&result, &x.tensor, &d.tensor, NULL, NULL, &mismatch));
                    lockstep_divergence mean;
                    CHECK_OK(lockstep_mismatch_exact(&mean, NULL, 0, &x.tensor, &x.tensor, NULL, &options));
                }
}

int main(void) {
    make_inputs();
    /* Before anything failed on this thread there is no message. */
    CHECK(strcmp(lockstep_last_error(), "") == 0);
    compute(&expected, 1);
    TEST(the_hosts_mode_changes_nothing);
    TEST(threads_change_nothing);
    TEST(eight_threads_at_once);
    TEST(error_text_belongs_to_its_thread);
    TEST(a_long_message_keeps_its_end);
    TEST_OF_FORKS(fork_is_survived);
    TEST(only_the_buffers_are_touched);
    return test_report();
}

// The physical limits of one core: peak fused multiply-adds a second, and bytes read a second.
// Built for the machine it runs on (-O2 -march=native); harness.py calls it through ctypes.
#include <stddef.h>
#include <time.h>

#if defined(__AVX512F__)
#define WIDTH 64
#elif defined(__AVX__)
#define WIDTH 32
#else
#define WIDTH 16
#endif
#define CHAINS 12  // more than latency times throughput of any core: the chains never wait

typedef float vector __attribute__((vector_size(WIDTH)));

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// GFLOP/s of independent fused multiply-adds in registers.
double peak_gflops(void) {
    vector sums[CHAINS], x = (vector){} + 1.0001f, y = (vector){} + 1e-6f;
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = (vector){} + (float)i;
    const long rounds = 4000000;
    double start = now();
    for (long round = 0; round < rounds; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            sums[i] = sums[i] * x + y;
            __asm__ volatile("" : "+x"(sums[i]));
        }
    }
    double seconds = now() - start;
    return 2.0 * CHAINS * (WIDTH / 4) * (double)rounds / seconds * 1e-9;
}

// GB/s of reading `count` floats, a multiple of 128.
double read_gb_s(const float *values, size_t count) {
    vector sums[128 * 4 / WIDTH] = {{0}};
    double start = now();
    for (size_t i = 0; i < count; i += 128)
#pragma GCC unroll 32
        for (size_t j = 0; j < 128 * 4 / WIDTH; j++) sums[j] += *(const vector *)(values + i + j * (WIDTH / 4));
    double seconds = now() - start;
    for (size_t j = 0; j < 128 * 4 / WIDTH; j++) __asm__ volatile("" : : "x"(sums[j]));
    return 4.0 * (double)count / seconds * 1e-9;
}

// Vectors of the width of the instruction set. Every operation rounds as IEEE 754 says, lane by
// lane, so the width never changes a bit. Included inside the target attribute of kernels_*.c.

#define LSK_LANES (LSK_WIDTH / 4)   // floats in a register
#define LSK_LANES64 (LSK_WIDTH / 8) // doubles in a register
#define LSK_INLINE static inline __attribute__((always_inline))

// On a loop over an array of registers: without it the array may stay in memory. The baseline, which has too few
// registers for that, is half a megabyte smaller without.
#if LSK_SET == LSK_BASELINE
#define LSK_UNROLL _Pragma("clang loop unroll(disable)")
#else
#define LSK_UNROLL _Pragma("clang loop unroll(full)")
#endif

// Keeps the compiler from moving what x is made of behind what comes next: where few registers make it form one value
// after the other, and processors do not look far enough ahead to work on both.
#if LSK_SET == LSK_AVX2
#define LSK_IN_STEP(x) __asm__ volatile("" : "+x"(x))
#else
#define LSK_IN_STEP(x) (void)0
#endif

typedef float vf __attribute__((vector_size(LSK_WIDTH)));
typedef int32_t vi __attribute__((vector_size(LSK_WIDTH)));
typedef uint32_t vu __attribute__((vector_size(LSK_WIDTH)));
typedef double vd __attribute__((vector_size(LSK_WIDTH)));
typedef int64_t vl __attribute__((vector_size(LSK_WIDTH)));
typedef uint64_t vul __attribute__((vector_size(LSK_WIDTH)));
typedef uint8_t vb_full __attribute__((vector_size(LSK_WIDTH)));
typedef uint16_t vh __attribute__((vector_size(LSK_WIDTH / 2)));    // as many 16-bit values as floats
typedef float vf_half __attribute__((vector_size(LSK_WIDTH / 2)));  // as many floats as doubles

LSK_INLINE vf vf_splat(float x) { return x - (vf){}; }
LSK_INLINE vi vi_splat(int32_t x) { return x - (vi){}; }
LSK_INLINE vd vd_splat(double x) { return x - (vd){}; }
LSK_INLINE vl vl_splat(int64_t x) { return x - (vl){}; }

LSK_INLINE vf vf_load(const float *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
LSK_INLINE void vf_store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
LSK_INLINE vd vd_load(const double *p) { vd v; __builtin_memcpy(&v, p, sizeof v); return v; }
LSK_INLINE void vd_store(double *p, vd v) { __builtin_memcpy(p, &v, sizeof v); }
LSK_INLINE vh vh_load(const uint16_t *p) { vh v; __builtin_memcpy(&v, p, sizeof v); return v; }
LSK_INLINE void vh_store(uint16_t *p, vh v) { __builtin_memcpy(p, &v, sizeof v); }

// a * b + c, rounded once. Without an instruction for it each lane is a call of libm's, and inlining those
// makes the library a megabyte larger for a processor that is hardly found any more.
#if LSK_SET == LSK_BASELINE
#define LSK_FMA static __attribute__((noinline))
#else
#define LSK_FMA LSK_INLINE
#endif
LSK_FMA vf vf_fma(vf a, vf b, vf c) { return __builtin_elementwise_fma(a, b, c); }
LSK_FMA vd vd_fma(vd a, vd b, vd c) { return __builtin_elementwise_fma(a, b, c); }

// Lane by lane: mask ? a : b, where a mask lane is all ones or zero.
LSK_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
LSK_INLINE vi vi_select(vi mask, vi a, vi b) { return (mask & a) | (~mask & b); }
LSK_INLINE vl vl_select(vl mask, vl a, vl b) { return (mask & a) | (~mask & b); }
LSK_INLINE vd vd_select(vl mask, vd a, vd b) { return (vd)((mask & (vl)a) | (~mask & (vl)b)); }

// Sets of tokens are a bit for each, the lowest first. `at` is a multiple of the lanes that are read.
typedef _Bool vb_bits __attribute__((ext_vector_type(LSK_WIDTH)));
typedef _Bool vi_bits __attribute__((ext_vector_type(LSK_LANES)));
#if LSK_SET == LSK_AVX512
typedef _Bool vl_bits __attribute__((ext_vector_type(LSK_LANES64)));
LSK_INLINE vl vl_from_bits(const uint64_t *bits, int64_t at) {
    vl_bits some;
    __builtin_memcpy(&some, (const char *)bits + at / 8, sizeof some);
    return __builtin_convertvector(some, vl) != 0;
}
LSK_INLINE vi vi_from_bits(const uint64_t *bits, int64_t at) {
    vi_bits some;
    __builtin_memcpy(&some, (const char *)bits + at / 8, sizeof some);
    return __builtin_convertvector(some, vi) != 0;
}
#else
static const int32_t powers_of_2[8] = {1, 2, 4, 8, 16, 32, 64, 128};
static const int64_t wide_powers_of_2[4] = {1, 2, 4, 8};
LSK_INLINE vl vl_from_bits(const uint64_t *bits, int64_t at) {
    vl powers;
    __builtin_memcpy(&powers, wide_powers_of_2, sizeof powers);
    return ((((const uint8_t *)bits)[at / 8] >> (at % 8)) & powers) != 0;
}
LSK_INLINE vi vi_from_bits(const uint64_t *bits, int64_t at) {
    vi powers;
    __builtin_memcpy(&powers, powers_of_2, sizeof powers);
    return ((((const uint8_t *)bits)[at / 8] >> (at % 8)) & powers) != 0;
}
#endif
LSK_INLINE uint64_t bits_of(vi lanes) {
    vi_bits some = __builtin_convertvector(lanes, vi_bits);
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &some, sizeof some);
    return bits & ((UINT64_C(1) << LSK_LANES) - 1);  // of four lanes in a byte the rest means nothing
}
LSK_INLINE int has_bit(const uint64_t *bits, int64_t at) { return (int)(bits[at / 64] >> (at % 64) & 1); }

// fp16 and bf16, LSK_LANES values at a time. Widening is exact; narrowing rounds once, to nearest even,
// and overflows to infinity. A NaN stays a NaN: it keeps its sign and the top bits of its payload, with
// the quiet bit set, which is what F16C, AVX-512 and NEON do. Where there is no conversion instruction
// the same bits come from integer arithmetic and exact products.
#if LSK_SET == LSK_BASELINE
LSK_INLINE vf vf_from_fp16(vh h) {
    vi wide = __builtin_convertvector(h, vi);
    vi magnitude = (wide & 0x7fff) << 13;
    vf value = (vf)magnitude * 0x1p112f;  // exact: re-biases the exponent, subnormals too
    vi special = magnitude >= (0x7c00 << 13);
    vi quiet = (magnitude > (0x7c00 << 13)) & 0x400000;
    vi bits = (special & (magnitude | 0x7f800000 | quiet)) | (~special & (vi)value);
    return (vf)(bits | ((wide & 0x8000) << 16));
}

LSK_INLINE vh vh_fp16_from_vf(vf x) {
    vi magnitude = (vi)x & 0x7fffffff;
    vi small = magnitude < 0x38800000;  // below 2^-14: subnormal in fp16
    // Where small, adding 2^-1 rounds to a multiple of 2^-24, the step of the subnormals.
    vi step = (vi)((vf)(small & magnitude) + 0.5f) - 0x3f000000;
    vu sum = (vu)magnitude + 0xfff + (vu)((magnitude >> 13) & 1);
    vi normal = (vi)(sum >> 13) - (112 << 10);
    vi code = (small & step) | (~small & normal);
    vi over = code > 0x7c00;
    code = (over & 0x7c00) | (~over & code);
    vi nan = magnitude > 0x7f800000;
    code = (nan & (0x7e00 | ((magnitude >> 13) & 0x3ff))) | (~nan & code);
    return __builtin_convertvector((vu)code | ((vu)x >> 31 << 15), vh);
}
#else
typedef _Float16 vf16 __attribute__((vector_size(LSK_WIDTH / 2)));
LSK_INLINE vf vf_from_fp16(vh h) { return __builtin_convertvector((vf16)h, vf); }
LSK_INLINE vh vh_fp16_from_vf(vf x) { return (vh)__builtin_convertvector(x, vf16); }
#endif

LSK_INLINE vf vf_from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vi) << 16); }

// The nearest bf16, ties to even, still as a float: the low half of each lane is zero.
LSK_INLINE vf vf_round_to_bf16(vf x) {
    vu bits = (vu)x;
    vu nan = (vu)((bits & 0x7fffffff) > 0x7f800000);
    vu nearest = bits + 0x7fff + ((bits >> 16) & 1);
    return (vf)(((nan & (bits | 0x400000)) | (~nan & nearest)) & 0xffff0000);
}
LSK_INLINE vh vh_bf16_from_vf(vf x) { return __builtin_convertvector((vu)vf_round_to_bf16(x) >> 16, vh); }

// What the values of a format are stored in.
LSK_INLINE int32_t storage_format(int32_t format) { return format >= LSK_EMULATED ? LSK_FP32 : format; }

// The nearest fp16, ties to even, still as a float.
LSK_INLINE vf vf_round_to_fp16(vf x) { return vf_from_fp16(vh_fp16_from_vf(x)); }

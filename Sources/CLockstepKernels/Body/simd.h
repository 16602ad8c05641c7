// Vectors of the width of the instruction set. Every operation rounds as IEEE 754 says, lane by
// lane, so the width never changes a bit. Included inside the target attribute of kernels_*.c.

#define LSK_LANES (LSK_WIDTH / 4)   // floats in a register
#define LSK_LANES64 (LSK_WIDTH / 8) // doubles in a register
#define LSK_INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LSK_WIDTH)));
typedef int32_t vi __attribute__((vector_size(LSK_WIDTH)));
typedef uint32_t vu __attribute__((vector_size(LSK_WIDTH)));
typedef double vd __attribute__((vector_size(LSK_WIDTH)));
typedef int64_t vl __attribute__((vector_size(LSK_WIDTH)));
typedef uint64_t vul __attribute__((vector_size(LSK_WIDTH)));
typedef uint16_t vh __attribute__((vector_size(LSK_WIDTH / 2)));    // as many 16-bit values as floats
typedef float vf_half __attribute__((vector_size(LSK_WIDTH / 2)));  // as many floats as doubles

LSK_INLINE vf vf_splat(float x) { return x - (vf){}; }
LSK_INLINE vi vi_splat(int32_t x) { return x - (vi){}; }
LSK_INLINE vd vd_splat(double x) { return x - (vd){}; }

LSK_INLINE vf vf_load(const float *p) { vf v; __builtin_memcpy(&v, p, sizeof v); return v; }
LSK_INLINE void vf_store(float *p, vf v) { __builtin_memcpy(p, &v, sizeof v); }
LSK_INLINE vd vd_load(const double *p) { vd v; __builtin_memcpy(&v, p, sizeof v); return v; }
LSK_INLINE void vd_store(double *p, vd v) { __builtin_memcpy(p, &v, sizeof v); }
LSK_INLINE vh vh_load(const uint16_t *p) { vh v; __builtin_memcpy(&v, p, sizeof v); return v; }

// a * b + c, rounded once.
LSK_INLINE vf vf_fma(vf a, vf b, vf c) { return __builtin_elementwise_fma(a, b, c); }
LSK_INLINE vd vd_fma(vd a, vd b, vd c) { return __builtin_elementwise_fma(a, b, c); }

// Lane by lane: mask ? a : b, where a mask lane is all ones or zero.
LSK_INLINE vf vf_select(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }
LSK_INLINE vd vd_select(vl mask, vd a, vd b) { return (vd)((mask & (vl)a) | (~mask & (vl)b)); }

// Exact widening of LSK_LANES values of fp16 (by integer arithmetic and one exact product, so that no
// conversion instruction is needed; F16C, AVX-512 and NEON use theirs) and of bf16.
#if LSK_SET == LSK_BASELINE
LSK_INLINE vf vf_from_fp16(vh h) {
    vi wide = __builtin_convertvector(h, vi);
    vi magnitude = (wide & 0x7fff) << 13;
    vf value = (vf)magnitude * 0x1p112f;  // exact: re-biases the exponent, subnormals too
    vi special = magnitude >= (0x7c00 << 13);
    vi bits = (special & (magnitude | 0x7f800000)) | (~special & (vi)value);
    return (vf)(bits | ((wide & 0x8000) << 16));
}
#else
typedef _Float16 vf16 __attribute__((vector_size(LSK_WIDTH / 2)));
LSK_INLINE vf vf_from_fp16(vh h) { return __builtin_convertvector((vf16)h, vf); }
#endif
LSK_INLINE vf vf_from_bf16(vh h) { return (vf)(__builtin_convertvector(h, vi) << 16); }

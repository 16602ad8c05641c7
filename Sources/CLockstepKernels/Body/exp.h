// The exponential of the log-softmax: e^y = p * 2^n with n = round(y log2 e) and p a polynomial in
// r = y - n L. Kept apart as (p, n), so that a sum can be scaled by an exact power of two.
//
// L is ln 2 rounded to float, so that r is exact in one fused multiply-add. A term is then e^y times
// e^(n (ln 2 - L)). For the largest terms of a sum, whose n is near its reference N, that is one common
// factor, undone in float64 by counting N in units of L; what is left, (n - N) 1.9e-9, is smaller than a
// rounding wherever the term is not negligible beside the largest.
//
// p is within 0.71 ulp of e^r; coefficients: minimax (Lawson) for r^2 q(r), |r| <= ln 2 / 2.

#define LSK_LOG2_E 0x1.715476p+0f
#define LSK_LN2 0x1.62e430p-1f  // rounded to float: see below
#define LSK_MAGIC 12582912.0f         // 1.5 * 2^23: adding it rounds to an integer, in the low bits

#define LSK_EXP_C2 0x1.fffffcp-2f
#define LSK_EXP_C3 0x1.555492p-3f
#define LSK_EXP_C4 0x1.5558f2p-5f
#define LSK_EXP_C5 0x1.1239e2p-7f
#define LSK_EXP_C6 0x1.6a2434p-10f

// e^r - 1 = r + r^2 q(r), without the one.
LSK_INLINE vf vf_exp_q(vf r) {
    vf q = vf_fma(vf_splat(LSK_EXP_C6), r, vf_splat(LSK_EXP_C5));
    q = vf_fma(q, r, vf_splat(LSK_EXP_C4));
    q = vf_fma(q, r, vf_splat(LSK_EXP_C3));
    return vf_fma(q, r, vf_splat(LSK_EXP_C2));
}

// e^r for |r| <= ln 2 / 2.
LSK_INLINE vf vf_exp_p(vf r) {
    vf q = vf_fma(vf_exp_q(r), r, vf_splat(1.0f));
    return vf_fma(q, r, vf_splat(1.0f));
}

// y - n L, exact for an integer n = round(y log2 e) of at most 2^21.
LSK_INLINE vf vf_exp_r(vf y, vf n) { return vf_fma(n, vf_splat(-LSK_LN2), y); }

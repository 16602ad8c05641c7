// Float64 functions of our own: libm's differ between systems, these are the same bits everywhere.

// What exp(x) and exp(-x) share. With x = n ln 2 + r, n an integer and |r| <= ln(2) / 2 (a hair more),
//     exp(x)  = 2^n  (1 + r + q_plus)        q_plus  = cosh(r) - 1 + (sinh(r) - r)
//     exp(-x) = 2^-n (1 - r + q_minus)       q_minus = cosh(r) - 1 - (sinh(r) - r)
// so the even and the odd half of one series give both, and neither 1 nor r is ever added to q before
// the caller wants it: that is what keeps exp(x) - 1 and exp(x) - 1 - x free of cancellation.
typedef struct {
    vd scale;    // 2^n
    vd inverse;  // 2^-n
    vd r;
    vd q_plus;
    vd q_minus;
} vd_exp_parts;

// q_plus and q_minus of `count` registers, step by step together: each step waits for the one before it. The parts of the
// series, Horner in r^2: 1/12! ... 1/2! and 1/13! ... 1/3!.
LSK_INLINE void exp_series(const int count, vd *q_plus, vd *q_minus, const vd *r) {
    static const double even_terms[] = {0x1.1eed8eff8d898p-29, 0x1.27e4fb7789f5cp-22, 0x1.a01a01a01a01ap-16,
                                        0x1.6c16c16c16c17p-10, 0x1.5555555555555p-5,  0.5};
    static const double odd_terms[] = {0x1.6124613a86d09p-33, 0x1.ae64567f544e4p-26, 0x1.71de3a556c734p-19,
                                       0x1.a01a01a01a01ap-13, 0x1.1111111111111p-7,  0x1.5555555555555p-3};
    vd z[LSK_LANES], even[LSK_LANES], odd[LSK_LANES];
    LSK_UNROLL for (int i = 0; i < count; i++) {
        z[i] = r[i] * r[i];
        even[i] = vd_splat(even_terms[0]);
        odd[i] = vd_splat(odd_terms[0]);
    }
    LSK_UNROLL for (int term = 1; term < 6; term++)
        LSK_UNROLL for (int i = 0; i < count; i++) {
            even[i] = vd_fma(even[i], z[i], vd_splat(even_terms[term]));
            odd[i] = vd_fma(odd[i], z[i], vd_splat(odd_terms[term]));
            LSK_IN_STEP(even[i]);
            LSK_IN_STEP(odd[i]);
        }
    LSK_UNROLL for (int i = 0; i < count; i++) {
        vd cube = r[i] * z[i], square = even[i] * z[i];
        q_plus[i] = vd_fma(cube, odd[i], square);
        if (q_minus) q_minus[i] = vd_fma(-cube, odd[i], square);
    }
}

// |r| <= LSK_EXP_NEAR: n is 0.
LSK_INLINE vd_exp_parts vd_split_exp_near(vd r) {
    vd_exp_parts parts = {.scale = vd_splat(1.0), .inverse = vd_splat(1.0), .r = r};
    exp_series(1, &parts.q_plus, &parts.q_minus, &r);
    return parts;
}

// Here x is nearer to 0 than to any other multiple of ln 2.
#define LSK_EXP_NEAR 0.3465

// x in [-709, 709]; at the ends 2^-n is 0 where it would be subnormal.
LSK_INLINE vd_exp_parts vd_split_exp(vd x) {
    const vd magic = vd_splat(0x1.8p52);  // adding it rounds to an integer, which stands in the low bits
    vd shifted = vd_fma(x, vd_splat(0x1.71547652b82fep0), magic);
    vd n = shifted - magic;
    vd r = vd_fma(n, vd_splat(-0x1.62e42fefa39efp-1), x);
    r = vd_fma(n, vd_splat(-0x1.abc9e3b39803fp-56), r);
    vd_exp_parts parts = vd_split_exp_near(r);
    vul exponent = (vul)shifted << 52;
    parts.scale = (vd)((vul)parts.scale + exponent);
    parts.inverse = (vd)((vul)parts.inverse - exponent);
    return parts;
}

// a > b ? a : b and a < b ? a : b, which is what the instruction does.
LSK_INLINE vd vd_max(vd a, vd b) { return vd_select(a > b, a, b); }
LSK_INLINE vd vd_min(vd a, vd b) { return vd_select(a < b, a, b); }
LSK_INLINE vd vd_abs(vd x) { return (vd)((vl)x & INT64_MAX); }

// Beyond +-LSK_EXP_LIMIT exp is infinite or zero.
#define LSK_EXP_LIMIT 709.0

// exp(x) for any x but NaN; below 1 ulp where |x| <= 708, subnormal results included; +inf above
// LSK_EXP_LIMIT; 0 below about -708.7.
LSK_INLINE vd vd_exp(vd x) {
    vd limit = vd_splat(LSK_EXP_LIMIT);
    vd_exp_parts parts = vd_split_exp(vd_max(vd_min(x, limit), -limit));
    vd value = vd_fma(parts.scale, parts.r + parts.q_plus, parts.scale);
    return vd_select(x > limit, vd_splat(__builtin_inf()), value);
}

// exp(x) - 1 for any x but NaN, without cancellation.
LSK_INLINE vd vd_exp_less_one(vd x) {
    vd limit = vd_splat(LSK_EXP_LIMIT);
    vd_exp_parts parts = vd_split_exp(vd_max(vd_min(x, limit), -limit));
    vd value = vd_fma(parts.scale, parts.r + parts.q_plus, parts.scale - 1.0);
    return vd_select(x > limit, vd_splat(__builtin_inf()), value);
}

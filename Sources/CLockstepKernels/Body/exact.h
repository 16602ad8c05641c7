// Sums without rounding. A sum is the exact sum of three doubles, of which nothing is asked but that whatever
// addition rounds off one of them goes into the next. A term that would be rounded off the last is refused:
// that is rare, and Lockstep/Mismatch/ExactSums.swift has room for it elsewhere.

// a + b; `rest` is what was rounded off.
LSK_INLINE vd two_sum(vd a, vd b, vd *rest) {
    vd sum = a + b, share = sum - a;
    *rest = (a - (sum - share)) + (b - share);
    return sum;
}

LSK_INLINE int any_not_0(vd x) { return __builtin_reduce_or(x != vd_splat(0)) != 0; }

// exact_add of products or, where `b` is NULL, of values.
LSK_INLINE int add_exactly(double *sums, int64_t stride, const double *a, const double *b, int64_t count,
                           uint64_t *refused) {
    const vd large = vd_splat(0x1p1000), zero = vd_splat(0);
    int any = 0;
    for (int64_t at = 0; at < count; at += LSK_LANES64) {
        vd x = vd_load(a + at), rest = zero;
        if (!b && !any_not_0(x)) continue;
        vl fits = vd_abs(x) < large;
        if (b) {
            vd y = vd_load(b + at), product = x * y;
            rest = vd_fma(x, y, -product);
            // Below, the rest of the product may be too small for a double.
            vl exact = (vd_abs(product) > vd_splat(0x1p-900)) | (x == zero) | (y == zero);
            fits = exact & (vd_abs(product) < large);
            x = product;
        }
        double *place = sums + at;
        vd high = vd_load(place), middle = vd_load(place + stride), low = vd_load(place + 2 * stride);
        vd over, more_over = zero, end, more_end = zero;
        vd new_high = two_sum(high, x, &over), new_middle = two_sum(middle, over, &over), new_low = low;
        if (b) new_middle = two_sum(new_middle, rest, &more_over);
        if (any_not_0((vd)((vl)over | (vl)more_over))) {
            new_low = two_sum(new_low, over, &end);
            new_low = two_sum(new_low, more_over, &more_end);
            fits &= (end == zero) & (more_end == zero);
        }
        vl not_fits = ~(fits & (vd_abs(new_high) < large));
        if (__builtin_reduce_or(not_fits)) {
            any = 1;
            for (int i = 0; i < LSK_LANES64; i++)
                if (not_fits[i]) refused[(at + i) / 64] |= UINT64_C(1) << ((at + i) % 64);
            new_high = vd_select(not_fits, high, new_high);
            new_middle = vd_select(not_fits, middle, new_middle);
            new_low = vd_select(not_fits, low, new_low);
        }
        vd_store(place, new_high);
        vd_store(place + stride, new_middle);
        vd_store(place + 2 * stride, new_low);
    }
    return any;
}

// Adds a[i] b[i], or a[i] where `b` is NULL, to sum i, whose three doubles stand in `sums` and `stride` and
// twice that behind. All arrays have room for whole blocks of 8, where a is 0. Sets the bits of refused terms
// in `refused`, and returns whether there are any.
static int exact_add(double *sums, int64_t stride, const double *a, const double *b, int64_t count,
                     uint64_t *refused) {
    return b ? add_exactly(sums, stride, a, b, count, refused)
             : add_exactly(sums, stride, a, NULL, count, refused);
}

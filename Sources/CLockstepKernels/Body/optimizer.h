// AdamW and the sum of squares of gradients. Reference/ReferenceOptimizer.swift says the same in scalars. Square
// roots and quotients are rounded right by IEEE 754, so registers and scalars have the same bits.

// One step, element by element; all arrays are fp32 and written in place but for `gradients`.
static void adamw(float *masters, float *first, float *second, const float *gradients, ptrdiff_t count,
                  const lsk_adamw_rule *rule) {
    const vf scale = vf_splat(rule->gradient_scale), first_rest = vf_splat(rule->first_rest);
    const vf beta = vf_splat(rule->second), rest = vf_splat(rule->second_rest);
    const vf inverse = vf_splat(rule->inverse_root), epsilon = vf_splat(rule->epsilon);
    const vf decay = vf_splat(rule->decay), size = vf_splat(-rule->step_size);
    for (ptrdiff_t at = 0; at < count; at += LSK_LANES) {
        const ptrdiff_t left = count - at;
        const int whole = left >= LSK_LANES;
        vf g = (whole ? vf_load(gradients + at) : load_some(LSK_FP32, gradients, at, left)) * scale;
        vf m = whole ? vf_load(first + at) : load_some(LSK_FP32, first, at, left);
        vf v = whole ? vf_load(second + at) : load_some(LSK_FP32, second, at, left);
        vf p = whole ? vf_load(masters + at) : load_some(LSK_FP32, masters, at, left);
        m = vf_fma(first_rest, g - m, m);
        v = vf_fma(beta, v, rest * g * g);
        vf update = m / vf_fma(__builtin_elementwise_sqrt(v), inverse, epsilon);
        p = vf_fma(size, update, p * decay);
        if (whole) {
            vf_store(first + at, m);
            vf_store(second + at, v);
            vf_store(masters + at, p);
        } else {
            store_some(LSK_FP32, first, at, left, m);
            store_some(LSK_FP32, second, at, left, v);
            store_some(LSK_FP32, masters, at, left, p);
        }
    }
}

#define LSK_SQUARE_LANES 32

// The sum of squares in float64, where a float's square is exact: element i belongs to lane i mod 32, lanes are
// halved into each other. `largest` gets the largest magnitude: infinite or NaN if any value is.
static double gradient_squares(float *largest, const float *gradients, ptrdiff_t count) {
    vd lanes[LSK_SQUARE_LANES / LSK_LANES64];
    vi most[LSK_SQUARE_LANES / LSK_LANES];
    for (int i = 0; i < LSK_SQUARE_LANES / LSK_LANES64; i++) lanes[i] = vd_splat(0);
    for (int i = 0; i < LSK_SQUARE_LANES / LSK_LANES; i++) most[i] = (vi){0};
    for (ptrdiff_t at = 0; at < count; at += LSK_SQUARE_LANES) {
        const float *block = gradients + at;
        float padded[LSK_SQUARE_LANES];
        if (count - at < LSK_SQUARE_LANES) {
            memset(padded, 0, sizeof padded);
            memcpy(padded, block, (size_t)(count - at) * sizeof *block);
            block = padded;
        }
        LSK_UNROLL
        for (int i = 0; i < LSK_SQUARE_LANES / LSK_LANES64; i++) {
            vf_half part;
            memcpy(&part, block + i * LSK_LANES64, sizeof part);
            vd x = __builtin_convertvector(part, vd);
            lanes[i] += x * x;
        }
        LSK_UNROLL
        for (int i = 0; i < LSK_SQUARE_LANES / LSK_LANES; i++) {
            vi magnitude = (vi)vf_load(block + i * LSK_LANES) & INT32_MAX;
            vi more = magnitude > most[i];
            most[i] = (more & magnitude) | (~more & most[i]);
        }
    }
    double sums[LSK_SQUARE_LANES];
    int32_t magnitudes[LSK_SQUARE_LANES], top = 0;
    memcpy(sums, lanes, sizeof sums);
    memcpy(magnitudes, most, sizeof magnitudes);
    for (int half = LSK_SQUARE_LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    for (int i = 0; i < LSK_SQUARE_LANES; i++)
        if (magnitudes[i] > top) top = magnitudes[i];
    memcpy(largest, &top, sizeof top);
    return sums[0];
}

#undef LSK_SQUARE_LANES

// Conversion between any two formats. A block of the source is widened to float (exactly, or from fp64
// so that nothing is lost that a second rounding needs), then narrowed; a block stays in the first
// cache. Only fp64 to fp32 or an emulated format, and stochastic rounding from fp64, go their own way.
#define CONVERT_BLOCK 2048

typedef uint8_t vb __attribute__((vector_size(LSK_LANES)));              // as many bytes as floats
typedef uint32_t vu_half __attribute__((vector_size(LSK_WIDTH / 2)));  // as many as doubles
typedef int32_t vi_half __attribute__((vector_size(LSK_WIDTH / 2)));

// A format narrower than the source. A magnitude's code is its bit pattern without the sign; codes of
// finite values are in the order of the values.
typedef struct {
    int32_t mantissa;   // bits of the mantissa
    int32_t bias;       // of the exponent; the smallest normal value is 2^(1 - bias)
    int32_t largest;    // code of the largest finite value
    int32_t infinity;   // code of infinity; in e4m3fn, which has none, of NaN
    int32_t sign;       // position of the sign bit
} narrow_format;

static const narrow_format narrow_fp32 = {23, 127, 0x7f7fffff, 0x7f800000, 31};
static const narrow_format narrow_fp16 = {10, 15, 0x7bff, 0x7c00, 15};
static const narrow_format narrow_bf16 = {7, 127, 0x7f7f, 0x7f80, 15};
static const narrow_format narrow_e4m3fn = {3, 7, 0x7e, 0x7f, 7};
static const narrow_format narrow_e5m2 = {2, 15, 0x7b, 0x7c, 7};

LSK_INLINE narrow_format narrow_emulated(int32_t format) {
    const int32_t exponent = format >> 8, mantissa = format & 0xff;
    const int32_t infinity = ((1 << exponent) - 1) << mantissa;
    return (narrow_format){mantissa, (1 << (exponent - 1)) - 1, infinity - 1, infinity, 31};
}

// What happened in each lane, as negative counts (a mask is -1).
typedef struct {
    vi overflow, underflow, nan;
} convert_tally;

static void add_tally(lsk_convert_counts *counts, const convert_tally *tally) {
    for (int i = 0; i < LSK_LANES; i++) {
        counts->overflow -= tally->overflow[i];
        counts->underflow -= tally->underflow[i];
        counts->nan -= tally->nan[i];
    }
}

// ---- float to a narrower format

// The codes of x with their signs. `random` is used by stochastic rounding: a value goes up when
// random + floor(fraction 2^32) carries out of 32 bits, where `fraction` in [0, 1) says how far it is
// from its lower neighbour to the upper one.
LSK_INLINE vu narrow(vf x, narrow_format format, int32_t rounding, vu random, convert_tally *tally) {
    const int32_t shift = 23 - format.mantissa;
    vu magnitude = (vu)x & 0x7fffffff;
    vi special = (vi)magnitude >= 0x7f800000, nan = (vi)magnitude > 0x7f800000;

    // Normal values: the dropped bits of the pattern are the fraction, and a carry moves the exponent.
    vu sum = magnitude;
    if (rounding == LSK_NEAREST_EVEN && shift > 0) sum += ((1 << (shift - 1)) - 1) + ((magnitude >> shift) & 1);
    if (rounding == LSK_STOCHASTIC && shift > 0) sum += random >> (32 - shift);
    vi code = (vi)(sum >> shift) - ((127 - format.bias) << format.mantissa);
    if (format.bias < 127) {
        // Subnormal results: multiples of one step, 2^(1 - bias - mantissa).
        vi small = (vi)magnitude < ((128 - format.bias) << 23);
        vf tiny = (vf)(small & (vi)magnitude);
        vi steps;
        if (rounding == LSK_NEAREST_EVEN) {
            // A float near 2^23 steps has no bits below one step, so the sum rounds to it.
            vi anchor = vi_splat((151 - format.bias - format.mantissa) << 23);
            steps = (vi)(tiny + (vf)anchor) - anchor;
        } else {
            vf scaled = tiny * (vf)vi_splat((126 + format.bias + format.mantissa) << 23);
            steps = __builtin_convertvector(scaled, vi);
            if (rounding == LSK_STOCHASTIC) {
                vf fraction = scaled - __builtin_convertvector(steps, vf);
                steps -= (vi)(random + __builtin_convertvector(fraction * 0x1p32f, vu) < random);
            }
        }
        code = (small & steps) | (~small & code);
    }

    vi over = code > format.largest;
    if (rounding == LSK_NEAREST_EVEN) {
        code = (over & format.infinity) | (~over & code);
    } else {
        code = (over & format.largest) | (~over & code);
        code = (special & format.infinity) | (~special & code);
        // Beyond the largest value by any part of a step.
        over = (vi)magnitude > (format.largest + ((127 - format.bias) << format.mantissa)) << shift;
    }
    vi payload = (vi)(magnitude >> shift) & ((1 << format.mantissa) - 1);
    code = (nan & (payload | format.infinity | (1 << (format.mantissa - 1)))) | (~nan & code);
    tally->overflow += over & ~special;
    tally->underflow += (code == 0) & (magnitude != 0);
    tally->nan += nan;
    return (vu)code | ((vu)x >> 31 << format.sign);
}

// The same for the two pairs that matter most, without a detour through 32-bit codes.
LSK_INLINE vh narrow_nearest16(vf x, narrow_format format, convert_tally *tally) {
    vh code = format.bias == 127 ? vh_bf16_from_vf(x) : vh_fp16_from_vf(x);
    vi magnitude = (vi)x & 0x7fffffff, result = __builtin_convertvector(code & 0x7fff, vi);
    tally->overflow += (result == format.infinity) & (magnitude < 0x7f800000);
    tally->underflow += (result == 0) & (magnitude != 0);
    tally->nan += magnitude > 0x7f800000;
    return code;
}

// ---- emulated formats

// The float that a code with its sign at bit 31 stands for: how values of an emulated format are stored.
LSK_INLINE vf widen_code(vu code, narrow_format format) {
    vi magnitude = (vi)(code & 0x7fffffff), bits = magnitude << (23 - format.mantissa);
    vf value = (vf)bits * (vf)vi_splat((254 - format.bias) << 23);  // exact: re-biases the exponent, subnormals too
    vi special = magnitude >= format.infinity;
    return (vf)((special & (bits | 0x7f800000)) | (~special & (vi)value) | (vi)(code & 0x80000000));
}

// The nearest value of an emulated format, ties to even.
static __attribute__((noinline)) vf vf_round_emulated(vf x, int32_t code) {
    const narrow_format format = narrow_emulated(code);
    convert_tally tally = {};
    return widen_code(narrow(x, format, LSK_NEAREST_EVEN, (vu){}, &tally), format);
}

// What a kernel wrote as floats, rounded in place if `format` is emulated: with that, every store in such a format is
// one rounding. Returns how many values are then infinite or NaN; 0 if it is not.
static int64_t round_stored(float *x, ptrdiff_t count, int32_t format) {
    if (format < LSK_EMULATED) return 0;
    vi found = {0};
    for (ptrdiff_t at = 0; at < count; at += LSK_LANES) {
        const size_t rest = (size_t)(count - at) * sizeof *x;
        vf v = {0};
        if (rest >= sizeof v) v = vf_load(x + at);
        else memcpy(&v, x + at, rest);
        v = vf_round_emulated(v, format);
        if (rest >= sizeof v) vf_store(x + at, v);
        else memcpy(x + at, &v, rest);
        found -= (v - v) != vf_splat(0.0f);
    }
    int64_t total = 0;
    for (int i = 0; i < LSK_LANES; i++) total += found[i];
    return total;
}

// ---- loops

LSK_INLINE void narrow_lanes(char *out, const float *in, const uint32_t *random, narrow_format format,
                             int32_t rounding, convert_tally *tally) {
    vf x = vf_load(in);
    if (format.sign == 15 && rounding == LSK_NEAREST_EVEN) {
        vh_store((uint16_t *)out, narrow_nearest16(x, format, tally));
        return;
    }
    vu words = {};
    if (rounding == LSK_STOCHASTIC) __builtin_memcpy(&words, random, sizeof words);
    vu code = narrow(x, format, rounding, words, tally);
    if (format.sign == 31) {
        vf_store((float *)out, widen_code(code, format));
    } else if (format.sign == 15) {
        vh_store((uint16_t *)out, __builtin_convertvector(code, vh));
    } else {
        vb bytes = __builtin_convertvector(code, vb);
        __builtin_memcpy(out, &bytes, sizeof bytes);
    }
}

LSK_INLINE void narrow_loop(char *out, const float *in, ptrdiff_t count, const uint32_t *random,
                            narrow_format format, int32_t rounding, lsk_convert_counts *counts) {
    const ptrdiff_t size = (format.sign + 1) / 8;
    convert_tally tally = {};
    ptrdiff_t i = 0;
    for (; i + LSK_LANES <= count; i += LSK_LANES)
        narrow_lanes(out + i * size, in + i, random + i, format, rounding, &tally);
    if (i < count) {
        float last[LSK_LANES] = {0};
        char codes[4 * LSK_LANES];
        memcpy(last, in + i, (size_t)(count - i) * sizeof *in);
        narrow_lanes(codes, last, random + i, format, rounding, &tally);
        memcpy(out + i * size, codes, (size_t)((count - i) * size));
    }
    add_tally(counts, &tally);
}

LSK_INLINE void narrow_rounded(char *out, const float *in, ptrdiff_t count, const uint32_t *random,
                               narrow_format format, int32_t rounding, lsk_convert_counts *counts) {
    switch (rounding) {
    case LSK_NEAREST_EVEN: narrow_loop(out, in, count, random, format, LSK_NEAREST_EVEN, counts); break;
    case LSK_TOWARD_ZERO: narrow_loop(out, in, count, random, format, LSK_TOWARD_ZERO, counts); break;
    default: narrow_loop(out, in, count, random, format, LSK_STOCHASTIC, counts); break;
    }
}

static void narrow_block(char *out, int32_t format, const float *in, ptrdiff_t count,
                         const uint32_t *random, int32_t rounding, lsk_convert_counts *counts) {
    switch (format) {
    case LSK_FP16: narrow_rounded(out, in, count, random, narrow_fp16, rounding, counts); break;
    case LSK_BF16: narrow_rounded(out, in, count, random, narrow_bf16, rounding, counts); break;
    case LSK_E4M3FN: narrow_rounded(out, in, count, random, narrow_e4m3fn, rounding, counts); break;
    case LSK_E5M2: narrow_rounded(out, in, count, random, narrow_e5m2, rounding, counts); break;
    default: narrow_rounded(out, in, count, random, narrow_emulated(format), rounding, counts); break;
    }
}

// ---- to float

// Exact, but that a signalling NaN becomes quiet, as hardware has it.
LSK_INLINE vf widen_lanes(const char *in, int32_t format) {
    if (format == LSK_FP16) return vf_from_fp16(vh_load((const uint16_t *)in));
    if (format == LSK_BF16) {
        vi bits = (vi)vf_from_bf16(vh_load((const uint16_t *)in));
        return (vf)(bits | (((bits & 0x7fffffff) > 0x7f800000) & 0x400000));
    }
    vb bytes;
    __builtin_memcpy(&bytes, in, sizeof bytes);
    if (format == LSK_E5M2) return vf_from_fp16(__builtin_convertvector(bytes, vh) << 8);
    vi wide = __builtin_convertvector(bytes, vi), magnitude = wide & 0x7f;
    vf value = (vf)(magnitude << 20) * 0x1p120f;  // exact: re-biases the exponent, subnormals too
    vi nan = magnitude == 0x7f;
    return (vf)((nan & 0x7fc00000) | (~nan & (vi)value) | (wide & 0x80) << 24);
}

LSK_INLINE void widen_loop(float *out, const char *in, ptrdiff_t count, int32_t format) {
    const ptrdiff_t size = format == LSK_FP16 || format == LSK_BF16 ? 2 : 1;
    ptrdiff_t i = 0;
    for (; i + LSK_LANES <= count; i += LSK_LANES) vf_store(out + i, widen_lanes(in + i * size, format));
    if (i < count) {
        char last[2 * LSK_LANES] = {0};
        float values[LSK_LANES];
        memcpy(last, in + i * size, (size_t)((count - i) * size));
        vf_store(values, widen_lanes(last, format));
        memcpy(out + i, values, (size_t)(count - i) * sizeof *out);
    }
}

// Doubles as floats. Toward zero, or to nearest; or rounded to odd: toward zero, then the last bit set
// if anything was cut. A float so rounded rounds again, to any format at least two bits narrower, as the
// double itself would: its last bit stands for all that followed it.
enum { DOUBLES_NEAREST = LSK_NEAREST_EVEN, DOUBLES_TOWARD_ZERO = LSK_TOWARD_ZERO, DOUBLES_TO_ODD };

LSK_INLINE vf_half floats_from_doubles(vd x, int32_t rule) {
    vf_half nearest = __builtin_convertvector(x, vf_half);
    if (rule == DOUBLES_NEAREST) return nearest;
    vd back = __builtin_convertvector(nearest, vd);
    vl away = (vl)((vd)((vl)back & INT64_MAX) > (vd)((vl)x & INT64_MAX));
    vu_half bits = (vu_half)nearest + (vu_half)__builtin_convertvector(away, vi_half);  // -1 where away
    if (rule == DOUBLES_TO_ODD) bits |= (vu_half)__builtin_convertvector((vl)(back != x), vi_half) & 1;
    return (vf_half)bits;
}

LSK_INLINE void doubles_loop(float *out, const double *in, ptrdiff_t count, int32_t rule) {
    ptrdiff_t i = 0;
    for (; i + LSK_LANES64 <= count; i += LSK_LANES64) {
        vf_half values = floats_from_doubles(vd_load(in + i), rule);
        __builtin_memcpy(out + i, &values, sizeof values);
    }
    if (i < count) {
        double last[LSK_LANES64] = {0};
        memcpy(last, in + i, (size_t)(count - i) * sizeof *in);
        vf_half values = floats_from_doubles(vd_load(last), rule);
        memcpy(out + i, &values, (size_t)(count - i) * sizeof *out);
    }
}

static void widen_block(float *out, const void *in, int32_t format, ptrdiff_t count) {
    switch (format) {
    case LSK_FP16: widen_loop(out, in, count, LSK_FP16); break;
    case LSK_BF16: widen_loop(out, in, count, LSK_BF16); break;
    case LSK_E4M3FN: widen_loop(out, in, count, LSK_E4M3FN); break;
    case LSK_E5M2: widen_loop(out, in, count, LSK_E5M2); break;
    default: doubles_loop(out, in, count, DOUBLES_TO_ODD); break;
    }
}

// ---- the pairs that go their own way

static void count_nans(const float *values, ptrdiff_t count, lsk_convert_counts *counts) {
    int32_t nans = 0;
    for (ptrdiff_t i = 0; i < count; i++) nans += values[i] != values[i];
    counts->nan += nans;
}

static void fp32_from_fp64(float *out, const double *in, ptrdiff_t count, int32_t rounding,
                           lsk_convert_counts *counts) {
    int64_t overflow = 0, underflow = 0, nan = 0;
    // The first magnitude that overflows: halfway from the largest float to 2^128, or just above it.
    const double over = rounding == LSK_NEAREST_EVEN ? 0x1.ffffffp127 : 0x1.fffffe0000001p127;
    for (ptrdiff_t i = 0; i < count; i++) {
        double magnitude = __builtin_fabs(in[i]);
        overflow += magnitude >= over && magnitude < __builtin_inf();
        nan += magnitude != magnitude;
        // To nearest, half of the smallest subnormal is a tie and goes to zero.
        underflow += magnitude > 0 && (rounding == LSK_NEAREST_EVEN ? magnitude <= 0x1p-150
                                                                    : magnitude < 0x1p-149);
    }
    counts->overflow += overflow;
    counts->underflow += underflow;
    counts->nan += nan;
    if (rounding == LSK_NEAREST_EVEN) doubles_loop(out, in, count, DOUBLES_NEAREST);
    else doubles_loop(out, in, count, DOUBLES_TOWARD_ZERO);
}

// The code of one double, rounded as `narrow` does.
static uint32_t narrow_from_fp64(double x, narrow_format format, int32_t rounding, uint32_t random,
                                 lsk_convert_counts *counts) {
    int64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int64_t magnitude = bits & INT64_MAX, infinity = (int64_t)0x7ff << 52;
    uint32_t sign = (uint32_t)(bits < 0) << format.sign;
    if (magnitude > infinity) {
        counts->nan++;
        int64_t payload = (magnitude >> (52 - format.mantissa)) & (((int64_t)1 << format.mantissa) - 1);
        return sign | (uint32_t)(payload | format.infinity | 1 << (format.mantissa - 1));
    }
    if (magnitude == infinity) return sign | (uint32_t)format.infinity;
    int64_t exponent = (magnitude >> 52) - 1023;
    if (exponent < 1 - format.bias) exponent = 1 - format.bias;
    // In units of the step at this exponent: exact, as the factor is a power of two.
    int64_t factor_bits = (1023 + format.mantissa - exponent) << 52;
    double factor, value;
    memcpy(&factor, &factor_bits, sizeof factor);
    memcpy(&value, &magnitude, sizeof value);
    double scaled = value * factor;
    int64_t steps = (int64_t)scaled;
    int64_t code = ((exponent + format.bias - 1) << format.mantissa) + steps;
    const double rest = scaled - (double)steps;
    if (rounding == LSK_NEAREST_EVEN) {
        code += rest > 0.5 || (rest == 0.5 && (code & 1) != 0);
        counts->overflow += code > format.largest;
        if (code > format.largest) code = format.infinity;
    } else {
        counts->overflow += code > format.largest || (code == format.largest && rest > 0);
        if (rounding == LSK_STOCHASTIC) code += random + (uint32_t)(rest * 0x1p32) < random;
        if (code > format.largest) code = format.largest;
    }
    counts->underflow += code == 0 && magnitude != 0;
    return sign | (uint32_t)code;
}

static void narrow_block_from_fp64(char *out, int32_t format, const double *in, ptrdiff_t count,
                                   const uint32_t *random, int32_t rounding, lsk_convert_counts *counts) {
    const narrow_format target = format == LSK_FP32   ? narrow_fp32
                                 : format == LSK_FP16 ? narrow_fp16
                                 : format == LSK_BF16 ? narrow_bf16
                                 : format == LSK_E4M3FN ? narrow_e4m3fn
                                 : format == LSK_E5M2   ? narrow_e5m2
                                                        : narrow_emulated(format);
    const ptrdiff_t size = (target.sign + 1) / 8;
    for (ptrdiff_t i = 0; i < count; i++) {
        uint32_t code = narrow_from_fp64(in[i], target, rounding, rounding == LSK_STOCHASTIC ? random[i] : 0, counts);
        if (target.sign == 31) {
            const float value = widen_code((vu){code}, target)[0];
            memcpy(&code, &value, sizeof code);
        }
        memcpy(out + i * size, &code, (size_t)size);  // little-endian, as both architectures are
    }
}

static void fp64_from_fp32(double *out, const float *in, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) out[i] = in[i];
}

// ---- any pair

static ptrdiff_t format_size(int32_t format) {
    if (storage_format(format) == LSK_FP32) return 4;
    return format == LSK_FP64 ? 8 : format == LSK_FP16 || format == LSK_BF16 ? 2 : 1;
}

// Element i takes word i mod 4 of the Philox counter i / 4.
static const uint32_t *random_words(uint32_t *words, ptrdiff_t count, uint64_t seed, uint64_t index) {
    const ptrdiff_t skipped = (ptrdiff_t)(index & 3);
    for (ptrdiff_t i = 0; i < count + skipped; i += 4 * LSK_LANES)
        philox(words + i, seed, (index >> 2) + (uint64_t)i / 4);
    return words + skipped;
}

static void convert(void *destination, int32_t destination_format, const void *source,
                    int32_t source_format, ptrdiff_t count, int32_t rounding, uint64_t seed,
                    uint64_t first_index, lsk_convert_counts *counts) {
    if (source_format == destination_format) destination_format = storage_format(destination_format);
    source_format = storage_format(source_format);
    float wide[CONVERT_BLOCK];
    uint32_t words[CONVERT_BLOCK + 5 * LSK_LANES];
    const ptrdiff_t in_size = format_size(source_format), out_size = format_size(destination_format);
    for (ptrdiff_t start = 0; start < count; start += CONVERT_BLOCK) {
        const ptrdiff_t n = count - start < CONVERT_BLOCK ? count - start : CONVERT_BLOCK;
        const char *in = (const char *)source + start * in_size;
        char *out = (char *)destination + start * out_size;
        const uint32_t *random = words;
        const int exact = destination_format == source_format || destination_format == LSK_FP64 ||
                          (destination_format == LSK_FP32 && source_format != LSK_FP64);
        if (rounding == LSK_STOCHASTIC && !exact)
            random = random_words(words, n, seed, first_index + (uint64_t)start);

        if (source_format == LSK_FP64 && destination_format != LSK_FP64 &&
            (rounding == LSK_STOCHASTIC || destination_format >= LSK_EMULATED)) {
            narrow_block_from_fp64(out, destination_format, (const double *)in, n, random, rounding, counts);
            continue;
        }
        if (source_format == LSK_FP64 && destination_format == LSK_FP32) {
            fp32_from_fp64((float *)out, (const double *)in, n, rounding, counts);
            continue;
        }
        const float *values = (const float *)in;
        if (source_format != LSK_FP32) {
            float *target = destination_format == LSK_FP32 ? (float *)out : wide;
            widen_block(target, in, source_format, n);
            values = target;
        }
        if (exact) {
            count_nans(values, n, counts);
            if (destination_format == source_format) memmove(out, in, (size_t)(n * in_size));
            else if (destination_format == LSK_FP64) fp64_from_fp32((double *)out, values, n);
        } else {
            narrow_block(out, destination_format, values, n, random, rounding, counts);
        }
    }
}

// Evidence of causes: counts and sums over the chunks that sum_span goes through.
// Lockstep/Reference/ReferenceEvidence.swift says the same in scalars.

// What is kept from chunk to chunk, in lanes.
typedef struct {
    vd z[LSK_MISMATCH_PARTS], zz[LSK_MISMATCH_PARTS];
    vd x[LSK_MISMATCH_PARTS], xx[LSK_MISMATCH_PARTS], xz[LSK_MISMATCH_PARTS];
} lsk_scaled_lanes;

typedef struct {
    vd log_ratio[LSK_MISMATCH_PARTS], square[LSK_MISMATCH_PARTS];
    vd rise[LSK_MISMATCH_PARTS], rise_square[LSK_MISMATCH_PARTS], ratio[LSK_MISMATCH_PARTS];
    vd trainer_square[LSK_MISMATCH_PARTS], rollout_square[LSK_MISMATCH_PARTS];
    vl count[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): plain, (1): up, (2): equal
} lsk_plain_lanes;

typedef struct {
    vd ahead[LSK_MISMATCH_PARTS], behind[LSK_MISMATCH_PARTS];
    vl pairs[LSK_MISMATCH_PARTS];  // LSK_COUNT(0)
} lsk_pair_lanes;

typedef struct {
    lsk_scaled_lanes scaled;
    lsk_plain_lanes plain;
    lsk_pair_lanes pairs;
    uint8_t before;  // whether what stands before the next chunk may belong to its first run
} lsk_evidence_lanes;

// What is worked out of a chunk between two goes over it. One register more than a chunk where a pair reads
// beyond its end.
typedef struct {
    uint8_t inner[LSK_MISMATCH_CHUNK];  // 1: counts and is no end of a run
    double z[LSK_MISMATCH_CHUNK];
    int64_t plain[LSK_MISMATCH_CHUNK + LSK_LANES64];  // all ones or 0
    int64_t bins[LSK_MISMATCH_CHUNK];                 // of plain tokens, others have the last
} lsk_scaled;

LSK_INLINE vl vl_clamp(vl x, int64_t low, int64_t high) {
    vl lower = x < low, upper = x > high;
    return (lower & low) | (upper & high) | (~(lower | upper) & x);
}

LSK_INLINE vl vl_load(const int64_t *p) {
    vl v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
LSK_INLINE void vl_store(int64_t *p, vl v) { __builtin_memcpy(p, &v, sizeof v); }

// Whether the log-probs are those of a token whose policies can be compared.
LSK_INLINE vl is_proper(vl counted, vd a, vd b) {
    const vd zero = vd_splat(0), mark = vd_splat(-1000);
    return counted & (a < zero) & (b < zero) & (a > mark) & (b > mark);
}

// Which tokens of the chunk are neither first nor last of a run. `after`: what stands behind the chunk may
// belong to its last run.
static void find_inner(lsk_scaled *out, const lsk_chunk *chunk, int64_t count, uint8_t before,
                       uint8_t after) {
    uint8_t counted[LSK_MISMATCH_CHUNK + 2];
    counted[0] = before;
    memcpy(counted + 1, chunk->counted, (size_t)chunk->padded);
    counted[count + 1] = after;
    for (int64_t i = 0; i < count; i++) out->inner[i] = counted[i] & counted[i + 1] & counted[i + 2];
    for (int64_t i = count; i < chunk->padded; i++) out->inner[i] = 0;
}

LSK_PASS add_scaled(lsk_scaled_lanes *lanes, lsk_scaled *out, const lsk_probabilities *in,
                    const lsk_chunk *chunk) {
    lsk_scaled_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i), d = a - b;
            vb64 inner;
            __builtin_memcpy(&inner, out->inner + i, sizeof inner);
            vl plain = is_proper(__builtin_convertvector(inner, vl) != 0, a, b);
            // The smaller probability is the sum without the larger.
            vd smaller = vd_load(in->sum + i) - vd_load(in->larger + i);
            vd s = vd_max(vd_splat(1) - smaller, vd_splat(0x1p-20));
            // A reciprocal in float32 is exact enough, four times faster, and the same everywhere.
            vf_half reciprocal = 1 / __builtin_convertvector(s, vf_half);
            vd inverse = __builtin_convertvector(reciprocal, vd);
            vd z = d * inverse, x = (vd)(plain & (vl)(b * inverse));
            vl scale = vl_clamp(1022 - ((vl)s >> 52), 0, LSK_EVIDENCE_SCALES - 1);
            vl octave = vl_clamp(((vl)vd_abs(z) >> 52) - (1023 + LSK_EVIDENCE_LOWEST), 0,
                                 LSK_EVIDENCE_OCTAVES - 1);
            vl up = d > vd_splat(0);
            vl bin = (scale * 2 + (up & 1)) * LSK_EVIDENCE_OCTAVES + octave;
            vl_store(out->bins + i, (plain & bin) | (~plain & (LSK_EVIDENCE_BINS - 1)));
            vd_store(out->z + i, z);
            z = (vd)(plain & (vl)z);
            vl_store(out->plain + i, plain);
            l.z[part] += z;
            l.zz[part] = vd_fma(z, z, l.zz[part]);
            l.x[part] += x;
            l.xx[part] = vd_fma(x, x, l.xx[part]);
            l.xz[part] = vd_fma(x, z, l.xz[part]);
        }
    }
    vl_store(out->plain + chunk->padded, (vl){0});
    *lanes = l;
}

LSK_PASS add_plain(lsk_plain_lanes *lanes, const lsk_scaled *scaled, const lsk_probabilities *in,
                   const lsk_chunk *chunk) {
    lsk_plain_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl plain = vl_load(scaled->plain + i);
            vd a = (vd)(plain & (vl)vd_load(chunk->trainer + i));
            vd b = (vd)(plain & (vl)vd_load(chunk->rollout + i)), d = a - b;
            vl up = d > vd_splat(0);
            vd rise = (vd)(up & (vl)d);
            l.log_ratio[part] += d;
            l.square[part] = vd_fma(d, d, l.square[part]);
            l.rise[part] += rise;
            l.rise_square[part] = vd_fma(rise, rise, l.rise_square[part]);
            l.trainer_square[part] = vd_fma(a, a, l.trainer_square[part]);
            l.rollout_square[part] = vd_fma(b, b, l.rollout_square[part]);
            l.ratio[part] += (vd)(plain & (vl)vd_load(in->ratio + i));
            l.count[part] += plain & LSK_COUNT(0);
            l.count[part] += up & LSK_COUNT(1);
            l.count[part] += plain & (d == vd_splat(0)) & LSK_COUNT(2);
        }
    }
    *lanes = l;
}

// What is not proper of a chunk that has such tokens: counts of one side; `other` holds the other side's.
static void add_faults(lsk_evidence_side *side, const double *values, const double *other,
                       const lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->padded; i++) {
        if (!chunk->counted[i]) continue;
        const int none = values[i] == 0 && other[i] < -0x1p-10;
        side->above_zero += values[i] > 0;
        side->marks += values[i] <= -1000;
        side->zero += none;
        side->zero_far += none && other[i] < -1;
    }
}

static int has_faults(const lsk_chunk *chunk) {
    vl faults = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vl counted = load_counted(chunk, i);
        faults |= counted & ~is_proper(counted, vd_load(chunk->trainer + i), vd_load(chunk->rollout + i));
    }
    int found = 0;
    for (int i = 0; i < LSK_LANES64; i++) found |= faults[i] != 0;
    return found;
}

// Which values of a chunk are on the grid of a format.
static void add_grid(lsk_evidence_side *side, const double *values, const lsk_chunk *chunk) {
    vl tested = {0}, bf16 = {0}, fp16 = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vd v = vd_load(values + i);
        const vl test = load_counted(chunk, i) & (vd_abs(v) >= vd_splat(0x1p-2));
        tested -= test;
        bf16 -= test & (((vl)v & ((INT64_C(1) << 45) - 1)) == 0);
        fp16 -= test & (((vl)v & ((INT64_C(1) << 42) - 1)) == 0);
    }
    for (int i = 0; i < LSK_LANES64; i++) {
        side->tested += tested[i];
        side->bf16_grid += bf16[i];
        side->fp16_grid += fp16[i];
    }
}

LSK_PASS add_pairs(lsk_pair_lanes *lanes, const lsk_scaled *scaled, const lsk_chunk *chunk) {
    lsk_pair_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl both = vl_load(scaled->plain + i) & vl_load(scaled->plain + i + 1);
            vd a = vd_load(chunk->trainer + i), next_a = vd_load(chunk->trainer + i + 1);
            vd b = vd_load(chunk->rollout + i), next_b = vd_load(chunk->rollout + i + 1);
            l.ahead[part] += (vd)(both & (vl)vd_abs(a - next_b));
            l.behind[part] += (vd)(both & (vl)vd_abs(next_a - b));
            l.pairs[part] += both & LSK_COUNT(0);
        }
    }
    *lanes = l;
}

// The octave of one z: as add_scaled has it.
static int64_t octave_of(double z) {
    int64_t bits;
    __builtin_memcpy(&bits, &z, sizeof bits);
    const int64_t octave = (bits >> 52 & 0x7ff) - (1023 + LSK_EVIDENCE_LOWEST);
    return octave < 0 ? 0 : octave >= LSK_EVIDENCE_OCTAVES ? LSK_EVIDENCE_OCTAVES - 1 : octave;
}

// The first and the last tokens of the chunk's runs.
static void add_ends(lsk_evidence *sums, uint64_t *counts, const lsk_scaled *scaled, const lsk_chunk *chunk,
                     int64_t count, uint8_t before, uint8_t after) {
    for (int64_t at = 0; at < chunk->padded; at += 8) {
        uint64_t counted, inner;
        __builtin_memcpy(&counted, chunk->counted + at, 8);
        __builtin_memcpy(&inner, scaled->inner + at, 8);
        if (counted == inner) continue;
        for (int64_t i = at; i < at + 8; i++) {
            if (chunk->counted[i] == scaled->inner[i]) continue;
            double a = chunk->trainer[i], b = chunk->rollout[i];
            if (!(a < 0 && b < 0 && a > -1000 && b > -1000)) continue;
            double square = (a - b) * (a - b);
            if (!(i == 0 ? before : chunk->counted[i - 1])) {
                counts[LSK_EVIDENCE_FIRST_ROW * LSK_EVIDENCE_OCTAVES + octave_of(scaled->z[i])]++;
                sums->first_square += square;
                sums->first++;
            }
            if (!(i + 1 == count ? after : chunk->counted[i + 1])) {
                counts[LSK_EVIDENCE_LAST_ROW * LSK_EVIDENCE_OCTAVES + octave_of(scaled->z[i])]++;
                sums->last_square += square;
                sums->last++;
            }
        }
    }
}

// Adds the chunk from `start` on; `ends` says where in its sequence the span is.
static void add_evidence(lsk_evidence_lanes *lanes, lsk_evidence *sums, uint64_t *counts, int32_t ends,
                         const lsk_probabilities *probabilities, const lsk_chunk *chunk,
                         const lsk_mismatch_span *span, int64_t start) {
    int64_t count = span->count - start;
    uint8_t before = lanes->before, after = (ends & LSK_SPAN_ENDS_SEQUENCE) == 0;
    if (count > LSK_MISMATCH_CHUNK) {
        count = LSK_MISMATCH_CHUNK;
        after = span->mask == NULL || span->mask[start + count] != 0;
    }
    lsk_scaled scaled;
    find_inner(&scaled, chunk, count, before, after);
    add_scaled(&lanes->scaled, &scaled, probabilities, chunk);
    add_plain(&lanes->plain, &scaled, probabilities, chunk);
    if (start == 0) {
        add_grid(&sums->trainer, chunk->trainer, chunk);
        add_grid(&sums->rollout, chunk->rollout, chunk);
    }
    if (has_faults(chunk)) {
        add_faults(&sums->trainer, chunk->trainer, chunk->rollout, chunk);
        add_faults(&sums->rollout, chunk->rollout, chunk->trainer, chunk);
    }
    add_pairs(&lanes->pairs, &scaled, chunk);
    // Two copies, so that a token need not wait for the one before.
    for (int64_t i = 0; i < chunk->padded; i += 2) {
        counts[scaled.bins[i]]++;
        counts[LSK_EVIDENCE_BINS + scaled.bins[i + 1]]++;
    }
    add_ends(sums, counts, &scaled, chunk, count, before, after);
    lanes->before = chunk->counted[count - 1];
}

static void finish_evidence(lsk_evidence *sums, const lsk_evidence_lanes *lanes) {
    sums->z = add_lanes(lanes->scaled.z);
    sums->zz = add_lanes(lanes->scaled.zz);
    sums->x = add_lanes(lanes->scaled.x);
    sums->xx = add_lanes(lanes->scaled.xx);
    sums->xz = add_lanes(lanes->scaled.xz);
    sums->plain = count_lanes(lanes->plain.count, 0);
    sums->up = count_lanes(lanes->plain.count, 1);
    sums->equal = count_lanes(lanes->plain.count, 2);
    sums->log_ratio = add_lanes(lanes->plain.log_ratio);
    sums->square = add_lanes(lanes->plain.square);
    sums->rise = add_lanes(lanes->plain.rise);
    sums->rise_square = add_lanes(lanes->plain.rise_square);
    sums->ratio = add_lanes(lanes->plain.ratio);
    sums->trainer_square = add_lanes(lanes->plain.trainer_square);
    sums->rollout_square = add_lanes(lanes->plain.rollout_square);
    sums->pairs = count_lanes(lanes->pairs.pairs, 0);
    sums->ahead = add_lanes(lanes->pairs.ahead);
    sums->behind = add_lanes(lanes->pairs.behind);
}

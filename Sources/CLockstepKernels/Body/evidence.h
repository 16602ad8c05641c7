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
    vl count[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): plain, (1): up, (2): equal
} lsk_plain_lanes;

typedef struct {
    vd step[LSK_MISMATCH_PARTS];
    vl grid[LSK_MISMATCH_PARTS];   // LSK_COUNT(0): tested, (1): bf16, (2): fp16
    vl marks[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): above zero, (1): marks, (2): zero, (3): zero far
} lsk_side_lanes;

typedef struct {
    vd neighbours[LSK_MISMATCH_PARTS], here[LSK_MISMATCH_PARTS];
    vd ahead[LSK_MISMATCH_PARTS], behind[LSK_MISMATCH_PARTS];
    vl pairs[LSK_MISMATCH_PARTS];  // LSK_COUNT(0)
} lsk_pair_lanes;

typedef struct {
    lsk_scaled_lanes scaled;
    lsk_plain_lanes plain;
    lsk_side_lanes trainer, rollout;
    lsk_pair_lanes pairs;
    uint8_t before;  // whether what stands before the next chunk may belong to its first run
} lsk_evidence_lanes;

// What is worked out of a chunk between two goes over it. One register more than a chunk where a pair reads
// beyond its end.
typedef struct {
    uint8_t inner[LSK_MISMATCH_CHUNK];  // 1: counts and is no end of a run
    double z[LSK_MISMATCH_CHUNK + LSK_LANES64];
    int64_t plain[LSK_MISMATCH_CHUNK + LSK_LANES64];  // all ones or 0
    double trainer[LSK_MISMATCH_CHUNK + LSK_LANES64], rollout[LSK_MISMATCH_CHUNK + LSK_LANES64];
    int64_t bins[LSK_MISMATCH_CHUNK];  // of plain tokens, others have the last
    int64_t octaves[LSK_MISMATCH_CHUNK];
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
static void find_inner(lsk_scaled *out, const lsk_chunk *chunk, int64_t count, uint8_t before, uint8_t after) {
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
            vl_store(out->octaves + i, octave);
            z = (vd)(plain & (vl)z);
            vd_store(out->z + i, z);
            vl_store(out->plain + i, plain);
            vd_store(out->trainer + i, a);
            vd_store(out->rollout + i, b);
            l.z[part] += z;
            l.zz[part] = vd_fma(z, z, l.zz[part]);
            l.x[part] += x;
            l.xx[part] = vd_fma(x, x, l.xx[part]);
            l.xz[part] = vd_fma(x, z, l.xz[part]);
        }
    }
    const vd zero = vd_splat(0);
    vd_store(out->z + chunk->padded, zero);
    vl_store(out->plain + chunk->padded, (vl)zero);
    vd_store(out->trainer + chunk->padded, zero);
    vd_store(out->rollout + chunk->padded, zero);
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
            vd d = (vd)(plain & (vl)(vd_load(scaled->trainer + i) - vd_load(scaled->rollout + i)));
            vl up = d > vd_splat(0);
            vd rise = (vd)(up & (vl)d);
            l.log_ratio[part] += d;
            l.square[part] = vd_fma(d, d, l.square[part]);
            l.rise[part] += rise;
            l.rise_square[part] = vd_fma(rise, rise, l.rise_square[part]);
            l.ratio[part] += (vd)(plain & (vl)vd_load(in->ratio + i));
            l.count[part] += plain & LSK_COUNT(0);
            l.count[part] += up & LSK_COUNT(1);
            l.count[part] += plain & (d == vd_splat(0)) & LSK_COUNT(2);
        }
    }
    *lanes = l;
}

// The counts of one side; `other` holds the other side's log-probs.
LSK_PASS add_side(lsk_side_lanes *lanes, const double *values, const double *other, const lsk_scaled *scaled,
                  const lsk_chunk *chunk) {
    lsk_side_lanes l = *lanes;
    const vd zero = vd_splat(0);
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl counted = load_counted(chunk, i), plain = vl_load(scaled->plain + i);
            vd v = vd_load(values + i), o = vd_load(other + i);
            vl bits = (vl)v, tested = counted & (vd_abs(v) >= vd_splat(0x1p-2));
            l.grid[part] += tested & LSK_COUNT(0);
            l.grid[part] += tested & ((bits & ((INT64_C(1) << 45) - 1)) == 0) & LSK_COUNT(1);
            l.grid[part] += tested & ((bits & ((INT64_C(1) << 42) - 1)) == 0) & LSK_COUNT(2);
            vl none = counted & (v == zero) & (o < vd_splat(-0x1p-10));
            l.marks[part] += counted & (v > zero) & LSK_COUNT(0);
            l.marks[part] += counted & (v <= vd_splat(-1000)) & LSK_COUNT(1);
            l.marks[part] += none & LSK_COUNT(2);
            l.marks[part] += none & (o < vd_splat(-1)) & LSK_COUNT(3);
            vd power = (vd)(plain & bits & INT64_C(0x7ff0000000000000));
            l.step[part] = vd_fma(power, power, l.step[part]);
        }
    }
    *lanes = l;
}

LSK_PASS add_pairs(lsk_pair_lanes *lanes, const lsk_scaled *scaled, const lsk_chunk *chunk) {
    lsk_pair_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl both = vl_load(scaled->plain + i) & vl_load(scaled->plain + i + 1);
            vd a = vd_load(scaled->trainer + i), next_a = vd_load(scaled->trainer + i + 1);
            vd b = vd_load(scaled->rollout + i), next_b = vd_load(scaled->rollout + i + 1);
            vd here = (vd_abs(a - b) + vd_abs(next_a - next_b)) * 0.5;
            l.here[part] += (vd)(both & (vl)here);
            l.ahead[part] += (vd)(both & (vl)vd_abs(a - next_b));
            l.behind[part] += (vd)(both & (vl)vd_abs(next_a - b));
            vd z = vd_load(scaled->z + i), next_z = vd_load(scaled->z + i + 1);
            l.neighbours[part] = vd_fma(z, next_z, l.neighbours[part]);
            l.pairs[part] += both & LSK_COUNT(0);
        }
    }
    *lanes = l;
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
                counts[LSK_EVIDENCE_FIRST_ROW * LSK_EVIDENCE_OCTAVES + scaled->octaves[i]]++;
                sums->first_square += square;
                sums->first++;
            }
            if (!(i + 1 == count ? after : chunk->counted[i + 1])) {
                counts[LSK_EVIDENCE_LAST_ROW * LSK_EVIDENCE_OCTAVES + scaled->octaves[i]]++;
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
    add_side(&lanes->trainer, chunk->trainer, chunk->rollout, &scaled, chunk);
    add_side(&lanes->rollout, chunk->rollout, chunk->trainer, &scaled, chunk);
    add_pairs(&lanes->pairs, &scaled, chunk);
    for (int64_t i = 0; i < chunk->padded; i++) counts[scaled.bins[i]]++;
    add_ends(sums, counts, &scaled, chunk, count, before, after);
    lanes->before = chunk->counted[count - 1];
}

static void finish_side(lsk_evidence_side *side, double *step, const lsk_side_lanes *lanes) {
    side->tested = count_lanes(lanes->grid, 0);
    side->bf16_grid = count_lanes(lanes->grid, 1);
    side->fp16_grid = count_lanes(lanes->grid, 2);
    side->above_zero = count_lanes(lanes->marks, 0);
    side->marks = count_lanes(lanes->marks, 1);
    side->zero = count_lanes(lanes->marks, 2);
    side->zero_far = count_lanes(lanes->marks, 3);
    *step = add_lanes(lanes->step);
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
    finish_side(&sums->trainer, &sums->trainer_step, &lanes->trainer);
    finish_side(&sums->rollout, &sums->rollout_step, &lanes->rollout);
    sums->pairs = count_lanes(lanes->pairs.pairs, 0);
    sums->neighbours = add_lanes(lanes->pairs.neighbours);
    sums->here = add_lanes(lanes->pairs.here);
    sums->ahead = add_lanes(lanes->pairs.ahead);
    sums->behind = add_lanes(lanes->pairs.behind);
}

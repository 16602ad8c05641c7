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
    vl count[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): up, (1): equal
} lsk_plain_lanes;

typedef struct {
    vd ahead[LSK_MISMATCH_PARTS], behind[LSK_MISMATCH_PARTS];
} lsk_pair_lanes;

typedef struct {
    lsk_scaled_lanes scaled;
    lsk_plain_lanes plain;
    lsk_pair_lanes pairs;
    uint64_t before;  // 1 or 0: whether what stands before the next chunk may belong to its first run
} lsk_evidence_lanes;

// What is worked out of a chunk between two goes over it. Sets are a bit for each token.
typedef struct {
    uint64_t first[LSK_MISMATCH_WORDS], last[LSK_MISMATCH_WORDS];  // ends of runs
    uint64_t plain[LSK_MISMATCH_WORDS];
    uint64_t pairs[LSK_MISMATCH_WORDS];  // with the next
    double z[LSK_MISMATCH_CHUNK];
    int32_t bins[LSK_MISMATCH_CHUNK];    // of plain tokens, others have the last
} lsk_scaled;

// Whether the log-probs are those of a token whose policies can be compared.
LSK_INLINE int is_proper(double a, double b) { return a < 0 && b < 0 && a > -1000 && b > -1000; }

// Whether the chunk has a token that counts and is not proper.
static int has_faults(const lsk_chunk *chunk) {
    vl faults = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i);
        const vl fault = (vd_max(a, b) >= vd_splat(0)) | (vd_min(a, b) <= vd_splat(-1000));
        faults |= vl_from_bits(chunk->counted, i) & fault;
    }
    return __builtin_reduce_or(faults) != 0;
}

// Tells plain tokens from the ends of runs. `before`, `after`: what stands before and behind the chunk may
// belong to its first and its last run.
static void find_runs(lsk_scaled *out, const lsk_chunk *chunk, uint64_t before, uint64_t after) {
    const uint64_t *counted = chunk->counted;
    const int64_t end = chunk->count - 1;
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) {
        uint64_t previous = counted[word] << 1 | (word == 0 ? before : counted[word - 1] >> 63);
        uint64_t next = counted[word] >> 1;
        if (word + 1 < LSK_MISMATCH_WORDS) next |= counted[word + 1] << 63;
        if (word == end / 64) next |= after << (end % 64);
        out->first[word] = counted[word] & ~previous;
        out->last[word] = counted[word] & ~next;
        out->plain[word] = counted[word] & previous & next;
    }
}

static void drop_faults(lsk_scaled *out, const lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->count; i++)
        if (!is_proper(chunk->trainer[i], chunk->rollout[i]))
            out->plain[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

static void find_pairs(lsk_scaled *out) {
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) {
        uint64_t next = out->plain[word] >> 1;
        if (word + 1 < LSK_MISMATCH_WORDS) next |= out->plain[word + 1] << 63;
        out->pairs[word] = out->plain[word] & next;
    }
}

LSK_INLINE int64_t count_bits(const uint64_t set[LSK_MISMATCH_WORDS]) {
    int64_t count = 0;
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) count += __builtin_popcountll(set[word]);
    return count;
}

LSK_PASS add_scaled(lsk_scaled_lanes *lanes, lsk_scaled *out, const lsk_probabilities *in,
                    const lsk_chunk *chunk) {
    lsk_scaled_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_BLOCK) {
#pragma clang loop unroll(full)
        for (int start = 0; start < LSK_MISMATCH_BLOCK; start += LSK_LANES) {
            vd s[2], z[2];
            vl up[2];
#pragma clang loop unroll(full)
            for (int half = 0; half < 2; half++) {
                const int part = (start / LSK_LANES64 + half) % LSK_MISMATCH_PARTS;
                const int64_t i = at + start + half * LSK_LANES64;
                vd b = vd_load(chunk->rollout + i), d = vd_load(chunk->trainer + i) - b;
                vl plain = vl_from_bits(out->plain, i);
                // The smaller probability is the sum without the larger.
                vd smaller = vd_load(in->sum + i) - vd_load(in->larger + i);
                s[half] = vd_max(vd_splat(1) - smaller, vd_splat(0x1p-20));
                // A reciprocal in float32 is exact enough, four times faster, and the same everywhere.
                vf_half reciprocal = 1 / __builtin_convertvector(s[half], vf_half);
                vd inverse = __builtin_convertvector(reciprocal, vd);
                z[half] = d * inverse;
                up[half] = d > vd_splat(0);
                vd_store(out->z + i, z[half]);
                vd plain_z = (vd)(plain & (vl)z[half]), x = (vd)(plain & (vl)(b * inverse));
                l.z[part] += plain_z;
                l.zz[part] = vd_fma(plain_z, plain_z, l.zz[part]);
                l.x[part] += x;
                l.xx[part] = vd_fma(x, x, l.xx[part]);
                l.xz[part] = vd_fma(x, plain_z, l.xz[part]);
            }
            // The exponents stand in the upper halves.
            vi scale = vi_clamp(1022 - (LSK_UPPER((vi)s[0], (vi)s[1]) >> 20), 0, LSK_EVIDENCE_SCALES - 1);
            vi octave = (LSK_UPPER((vi)z[0], (vi)z[1]) >> 20 & 0x7ff) - (1023 + LSK_EVIDENCE_LOWEST);
            octave = vi_clamp(octave, 0, LSK_EVIDENCE_OCTAVES - 1);
            vi bin = (scale * 2 - LSK_UPPER((vi)up[0], (vi)up[1])) * LSK_EVIDENCE_OCTAVES + octave;
            vi plain = vi_from_bits(out->plain, at + start);
            bin = (plain & bin) | (~plain & (LSK_EVIDENCE_BINS - 1));
            __builtin_memcpy(out->bins + at + start, &bin, sizeof bin);
        }
    }
    *lanes = l;
}

LSK_PASS add_plain(lsk_plain_lanes *lanes, const lsk_scaled *scaled, const lsk_probabilities *in,
                   const lsk_chunk *chunk) {
    lsk_plain_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl plain = vl_from_bits(scaled->plain, i);
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
            l.count[part] += up & LSK_COUNT(0);
            l.count[part] += plain & (d == vd_splat(0)) & LSK_COUNT(1);
        }
    }
    *lanes = l;
}

// What is not proper of a chunk that has such tokens: counts of one side; `other` holds the other side's.
static void add_faults(lsk_evidence_side *side, const double *values, const double *other,
                       const lsk_chunk *chunk) {
    for (int64_t i = 0; i < chunk->count; i++) {
        if (!has_bit(chunk->counted, i)) continue;
        const int none = values[i] == 0 && other[i] < -0x1p-10;
        side->above_zero += values[i] > 0;
        side->marks += values[i] <= -1000;
        side->zero += none;
        side->zero_far += none && other[i] < -1;
    }
}

// Which values of a chunk are on the grid of a format.
static void add_grid(lsk_evidence_side *side, const double *values, const lsk_chunk *chunk) {
    vl tested = {0}, bf16 = {0}, fp16 = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vd v = vd_load(values + i);
        const vl test = vl_from_bits(chunk->counted, i) & (vd_abs(v) >= vd_splat(0x1p-2));
        tested -= test;
        bf16 -= test & (((vl)v & ((INT64_C(1) << 45) - 1)) == 0);
        fp16 -= test & (((vl)v & ((INT64_C(1) << 42) - 1)) == 0);
    }
    side->tested += __builtin_reduce_add(tested);
    side->bf16_grid += __builtin_reduce_add(bf16);
    side->fp16_grid += __builtin_reduce_add(fp16);
}

LSK_PASS add_pairs(lsk_pair_lanes *lanes, const lsk_scaled *scaled, const lsk_chunk *chunk) {
    lsk_pair_lanes l = *lanes;
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vl both = vl_from_bits(scaled->pairs, i);
            vd a = vd_load(chunk->trainer + i), next_a = vd_load(chunk->trainer + i + 1);
            vd b = vd_load(chunk->rollout + i), next_b = vd_load(chunk->rollout + i + 1);
            l.ahead[part] += (vd)(both & (vl)vd_abs(a - next_b));
            l.behind[part] += (vd)(both & (vl)vd_abs(next_a - b));
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

// Adds the proper ones of some ends of runs: to their row of counts, their squares and their number.
static void add_ends(uint64_t *row, double *square, int64_t *number, const uint64_t ends[LSK_MISMATCH_WORDS],
                     const lsk_scaled *scaled, const lsk_chunk *chunk) {
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) {
        for (uint64_t rest = ends[word]; rest; rest &= rest - 1) {
            const int64_t i = 64 * word + __builtin_ctzll(rest);
            const double a = chunk->trainer[i], b = chunk->rollout[i];
            if (!is_proper(a, b)) continue;
            row[octave_of(scaled->z[i])]++;
            *square += (a - b) * (a - b);
            ++*number;
        }
    }
}

// Adds the chunk from `start` on; `ends` says where in its sequence the span is.
static void add_evidence(lsk_evidence_lanes *lanes, lsk_evidence *sums, uint64_t *counts, int32_t ends,
                         const lsk_probabilities *probabilities, const lsk_chunk *chunk,
                         const lsk_mismatch_span *span, int64_t start) {
    const int64_t end = start + chunk->count;
    const uint64_t after = end < span->count ? span->mask == NULL || span->mask[end] != 0
                                             : (ends & LSK_SPAN_ENDS_SEQUENCE) == 0;
    lsk_scaled scaled;
    find_runs(&scaled, chunk, lanes->before, after);
    if (has_faults(chunk)) {
        drop_faults(&scaled, chunk);
        add_faults(&sums->trainer, chunk->trainer, chunk->rollout, chunk);
        add_faults(&sums->rollout, chunk->rollout, chunk->trainer, chunk);
    }
    find_pairs(&scaled);
    sums->plain += count_bits(scaled.plain);
    sums->pairs += count_bits(scaled.pairs);
    add_scaled(&lanes->scaled, &scaled, probabilities, chunk);
    add_plain(&lanes->plain, &scaled, probabilities, chunk);
    add_pairs(&lanes->pairs, &scaled, chunk);
    if (start == 0) {
        add_grid(&sums->trainer, chunk->trainer, chunk);
        add_grid(&sums->rollout, chunk->rollout, chunk);
    }
    // Two copies, so that a token need not wait for the one before.
    for (int64_t i = 0; i < chunk->padded; i += 2) {
        counts[scaled.bins[i]]++;
        counts[LSK_EVIDENCE_BINS + scaled.bins[i + 1]]++;
    }
    add_ends(counts + LSK_EVIDENCE_FIRST_ROW * LSK_EVIDENCE_OCTAVES, &sums->first_square, &sums->first,
             scaled.first, &scaled, chunk);
    add_ends(counts + LSK_EVIDENCE_LAST_ROW * LSK_EVIDENCE_OCTAVES, &sums->last_square, &sums->last,
             scaled.last, &scaled, chunk);
    lanes->before = (uint64_t)has_bit(chunk->counted, chunk->count - 1);
}

static void finish_evidence(lsk_evidence *sums, const lsk_evidence_lanes *lanes) {
    sums->z = add_lanes(lanes->scaled.z);
    sums->zz = add_lanes(lanes->scaled.zz);
    sums->x = add_lanes(lanes->scaled.x);
    sums->xx = add_lanes(lanes->scaled.xx);
    sums->xz = add_lanes(lanes->scaled.xz);
    sums->up = count_lanes(lanes->plain.count, 0);
    sums->equal = count_lanes(lanes->plain.count, 1);
    sums->log_ratio = add_lanes(lanes->plain.log_ratio);
    sums->square = add_lanes(lanes->plain.square);
    sums->rise = add_lanes(lanes->plain.rise);
    sums->rise_square = add_lanes(lanes->plain.rise_square);
    sums->ratio = add_lanes(lanes->plain.ratio);
    sums->trainer_square = add_lanes(lanes->plain.trainer_square);
    sums->rollout_square = add_lanes(lanes->plain.rollout_square);
    sums->ahead = add_lanes(lanes->pairs.ahead);
    sums->behind = add_lanes(lanes->pairs.behind);
}

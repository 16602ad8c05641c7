// Evidence of causes: counts and sums over the chunks that sum_span goes through.
// Lockstep/Reference/ReferenceEvidence.swift says the same in scalars.

// What is kept from chunk to chunk, in lanes.
typedef struct {
    vd z[LSK_MISMATCH_PARTS], zz[LSK_MISMATCH_PARTS];
    vd x[LSK_MISMATCH_PARTS], xx[LSK_MISMATCH_PARTS], xz[LSK_MISMATCH_PARTS];
    vd log_ratio[LSK_MISMATCH_PARTS], square[LSK_MISMATCH_PARTS];
    vd rise[LSK_MISMATCH_PARTS], rise_square[LSK_MISMATCH_PARTS], ratio[LSK_MISMATCH_PARTS];
    vd trainer_square[LSK_MISMATCH_PARTS], rollout_square[LSK_MISMATCH_PARTS];
} lsk_plain_lanes;

typedef struct {
    vd ahead[LSK_MISMATCH_PARTS], behind[LSK_MISMATCH_PARTS];
} lsk_pair_lanes;

typedef struct {
    lsk_plain_lanes plain;
    lsk_pair_lanes pairs;
    uint64_t before;  // 1 or 0: whether what stands before the next chunk may belong to its first run
} lsk_evidence_lanes;

// What is worked out of a chunk between two goes over it. Sets are a bit for each token.
typedef struct {
    uint64_t first[LSK_MISMATCH_WORDS], last[LSK_MISMATCH_WORDS];  // ends of runs
    uint64_t plain[LSK_MISMATCH_WORDS];
    uint64_t pairs[LSK_MISMATCH_WORDS];  // with the next
    int32_t bins[LSK_MISMATCH_CHUNK];    // row and octave
} lsk_scaled;

// Whether the log-probs are those of a token whose policies can be compared.
LSK_INLINE int is_proper(double a, double b) { return a < 0 && b < 0 && a > -1000 && b > -1000; }

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
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES) {
        vl faults[2];
        for (int half = 0; half < 2; half++) {
            const int64_t i = at + half * LSK_LANES64;
            const vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i);
            faults[half] = (vd_max(a, b) >= vd_splat(0)) | (vd_min(a, b) <= vd_splat(-1000));
        }
        out->plain[at / 64] &= ~(bits_of(LSK_UPPER((vi)faults[0], (vi)faults[1])) << (at % 64));
    }
}

static void find_pairs(lsk_scaled *out) {
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) {
        uint64_t next = out->plain[word] >> 1;
        if (word + 1 < LSK_MISMATCH_WORDS) next |= out->plain[word + 1] << 63;
        out->pairs[word] = out->plain[word] & next;
    }
}

// s and its reciprocal: in float32 that is exact enough, four times faster, and the same everywhere.
LSK_INLINE vd scale_of(vd smaller) { return vd_max(vd_splat(1) - smaller, vd_splat(0x1p-20)); }
LSK_INLINE vd inverse_of(vd scale) {
    const vf_half reciprocal = 1 / __builtin_convertvector(scale, vf_half);
    return __builtin_convertvector(reciprocal, vd);
}

// 1 / s of every token, where its smaller probability was, and the rows and octaves of plain ones; the bin of the
// histogram says whether d is above 0, or 0.
LSK_PASS find_octaves(lsk_evidence *sums, lsk_scaled *scaled, lsk_probabilities *values, const lsk_chunk *chunk) {
    vi rises = {0}, equal = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES) {
        const vi plain = vi_from_bits(scaled->plain, at);
        vd s[2], z[2];
        LSK_UNROLL
        for (int half = 0; half < 2; half++) {
            const int64_t i = at + half * LSK_LANES64;
            s[half] = scale_of(vd_load(values->smaller + i));
            const vd inverse = inverse_of(s[half]);
            vd_store(values->smaller + i, inverse);
            z[half] = vd_load(chunk->d + i) * inverse;
        }
        vi bin;
        __builtin_memcpy(&bin, chunk->bins + at, sizeof bin);
        const vi up = plain & (bin > LSK_MISMATCH_ZERO_BIN);
        rises += up;
        equal += plain & (bin == LSK_MISMATCH_ZERO_BIN);
        // The exponents stand in the upper halves; s is in [2^-20, 1].
        const vi scale = vi_clamp(1022 - (LSK_UPPER((vi)s[0], (vi)s[1]) >> 20), 0, LSK_EVIDENCE_SCALES - 1);
        const vi octave = vi_clamp((LSK_UPPER((vi)z[0], (vi)z[1]) >> 20 & 0x7ff) - (1023 + LSK_EVIDENCE_LOWEST), 0,
                                   LSK_EVIDENCE_OCTAVES - 1);
        bin = vi_select(plain, (scale * 2 - up) * LSK_EVIDENCE_OCTAVES + octave, vi_splat(LSK_EVIDENCE_BINS - 1));
        __builtin_memcpy(scaled->bins + at, &bin, sizeof bin);
    }
    sums->up -= __builtin_reduce_add(rises);
    sums->equal -= __builtin_reduce_add(equal);
}

// z and x of plain tokens.
LSK_PASS add_scaled(lsk_plain_lanes *lanes, const lsk_scaled *scaled, const double *inverses,
                    const lsk_chunk *chunk) {
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        vd z_sum = lanes->z[part], zz = lanes->zz[part], x_sum = lanes->x[part], xx = lanes->xx[part];
        vd xz = lanes->xz[part];
        for (int64_t i = part * LSK_LANES64; i < chunk->padded; i += LSK_MISMATCH_LANES) {
            const vd inverse = (vd)(vl_from_bits(scaled->plain, i) & (vl)vd_load(inverses + i));
            const vd z = vd_load(chunk->d + i) * inverse, x = vd_load(chunk->rollout + i) * inverse;
            z_sum += z;
            zz = vd_fma(z, z, zz);
            x_sum += x;
            xx = vd_fma(x, x, xx);
            xz = vd_fma(x, z, xz);
        }
        lanes->z[part] = z_sum, lanes->zz[part] = zz, lanes->x[part] = x_sum, lanes->xx[part] = xx;
        lanes->xz[part] = xz;
    }
}

// The rest of plain tokens. Their bins are counted beside; there are two copies, so that a token need not wait for the
// one before.
LSK_PASS add_plain(lsk_plain_lanes *lanes, uint64_t *counts, const lsk_scaled *scaled, const lsk_probabilities *in,
                   const lsk_chunk *chunk) {
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        vd log_ratio = lanes->log_ratio[part], square = lanes->square[part], rise = lanes->rise[part];
        vd rise_square = lanes->rise_square[part], ratio = lanes->ratio[part];
        vd trainer_square = lanes->trainer_square[part], rollout_square = lanes->rollout_square[part];
        for (int64_t i = part * LSK_LANES64; i < chunk->padded; i += LSK_MISMATCH_LANES) {
            const vl plain = vl_from_bits(scaled->plain, i);
            const vd a = (vd)(plain & (vl)vd_load(chunk->trainer + i));
            const vd b = (vd)(plain & (vl)vd_load(chunk->rollout + i));
            const vd d = (vd)(plain & (vl)vd_load(chunk->d + i)), up = vd_max(d, vd_splat(0));
            log_ratio += d;
            square = vd_fma(d, d, square);
            rise += up;
            rise_square = vd_fma(up, up, rise_square);
            ratio += (vd)(plain & (vl)vd_load(in->ratio + i));
            trainer_square = vd_fma(a, a, trainer_square);
            rollout_square = vd_fma(b, b, rollout_square);
            LSK_UNROLL
            for (int lane = 0; lane < LSK_LANES64; lane++)
                counts[lane % LSK_EVIDENCE_COPIES * LSK_EVIDENCE_BINS + scaled->bins[i + lane]]++;
        }
        lanes->log_ratio[part] = log_ratio, lanes->square[part] = square;
        lanes->rise[part] = rise, lanes->rise_square[part] = rise_square, lanes->ratio[part] = ratio;
        lanes->trainer_square[part] = trainer_square, lanes->rollout_square[part] = rollout_square;
    }
}

// What is not proper of a chunk that has such tokens: counts of one side; `other` holds the other side's.
static void add_faults(lsk_evidence_side *side, const double *values, const double *other,
                       const lsk_chunk *chunk) {
    vl above = {0}, marks = {0}, zero = {0}, far = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vl counted = counted_at(chunk, i);
        const vd x = vd_load(values + i), y = vd_load(other + i);
        const vl none = (x == vd_splat(0)) & (y < vd_splat(-0x1p-10));
        above -= counted & (x > vd_splat(0));
        marks -= counted & (x <= vd_splat(-1000));
        zero -= counted & none;
        far -= counted & none & (y < vd_splat(-1));
    }
    side->above_zero += __builtin_reduce_add(above);
    side->marks += __builtin_reduce_add(marks);
    side->zero += __builtin_reduce_add(zero);
    side->zero_far += __builtin_reduce_add(far);
}

// Which values of a chunk are on the grid of a format.
static void add_grid(lsk_evidence_side *side, const double *values, const lsk_chunk *chunk) {
    vl tested = {0}, bf16 = {0}, fp16 = {0};
    for (int64_t i = 0; i < chunk->padded; i += LSK_LANES64) {
        const vd v = vd_load(values + i);
        const vl test = vd_abs(v) >= vd_splat(0x1p-2);  // what does not count is 0
        tested -= test;
        bf16 -= test & (((vl)v & ((INT64_C(1) << 45) - 1)) == 0);
        fp16 -= test & (((vl)v & ((INT64_C(1) << 42) - 1)) == 0);
    }
    side->tested += __builtin_reduce_add(tested);
    side->bf16_grid += __builtin_reduce_add(bf16);
    side->fp16_grid += __builtin_reduce_add(fp16);
}

LSK_PASS add_pairs(lsk_pair_lanes *lanes, const lsk_scaled *scaled, const lsk_chunk *chunk) {
    for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
        vd ahead = lanes->ahead[part], behind = lanes->behind[part];
        for (int64_t i = part * LSK_LANES64; i < chunk->padded; i += LSK_MISMATCH_LANES) {
            const vl both = vl_from_bits(scaled->pairs, i) & INT64_MAX;  // takes the sign off too
            const vd a = vd_load(chunk->trainer + i), next_a = vd_load(chunk->trainer + i + 1);
            const vd b = vd_load(chunk->rollout + i), next_b = vd_load(chunk->rollout + i + 1);
            ahead += (vd)(both & (vl)(a - next_b));
            behind += (vd)(both & (vl)(next_a - b));
        }
        lanes->ahead[part] = ahead, lanes->behind[part] = behind;
    }
}

// The octave of one z: as add_octaves has it.
static int64_t octave_of(double z) {
    int64_t bits;
    __builtin_memcpy(&bits, &z, sizeof bits);
    const int64_t octave = (bits >> 52 & 0x7ff) - (1023 + LSK_EVIDENCE_LOWEST);
    return octave < 0 ? 0 : octave >= LSK_EVIDENCE_OCTAVES ? LSK_EVIDENCE_OCTAVES - 1 : octave;
}

// Adds the proper ones of some ends of runs: to their row of counts, their squares and their number.
static void add_ends(uint64_t *row, double *square, int64_t *number, const uint64_t ends[LSK_MISMATCH_WORDS],
                     const double *inverses, const lsk_chunk *chunk) {
    for (int word = 0; word < LSK_MISMATCH_WORDS; word++) {
        for (uint64_t rest = ends[word]; rest; rest &= rest - 1) {
            const int64_t i = 64 * word + __builtin_ctzll(rest);
            if (!is_proper(chunk->trainer[i], chunk->rollout[i])) continue;
            const double d = chunk->d[i];
            row[octave_of(d * inverses[i])]++;
            *square += d * d;
            ++*number;
        }
    }
}

// Adds the chunk from `start` on; `ends` says where in its sequence the span is.
LSK_INLINE void add_evidence(lsk_evidence_lanes *lanes, lsk_evidence *sums, uint64_t *counts, int32_t ends,
                         lsk_probabilities *probabilities, const lsk_chunk *chunk,
                         const lsk_mismatch_span *span, int64_t start) {
    const int64_t end = start + chunk->count;
    const uint64_t after = end < span->count ? span->mask == NULL || span->mask[end] != 0
                                             : (ends & LSK_SPAN_ENDS_SEQUENCE) == 0;
    lsk_scaled scaled;
    find_runs(&scaled, chunk, lanes->before, after);
    if (!chunk->proper) {
        drop_faults(&scaled, chunk);
        add_faults(&sums->trainer, chunk->trainer, chunk->rollout, chunk);
        add_faults(&sums->rollout, chunk->rollout, chunk->trainer, chunk);
    }
    find_pairs(&scaled);
    sums->plain += count_bits(scaled.plain);
    sums->pairs += count_bits(scaled.pairs);
    find_octaves(sums, &scaled, probabilities, chunk);
    add_scaled(&lanes->plain, &scaled, probabilities->smaller, chunk);
    add_plain(&lanes->plain, counts, &scaled, probabilities, chunk);
    add_pairs(&lanes->pairs, &scaled, chunk);
    if (start == 0) {
        add_grid(&sums->trainer, chunk->trainer, chunk);
        add_grid(&sums->rollout, chunk->rollout, chunk);
    }
    add_ends(counts + LSK_EVIDENCE_FIRST_ROW * LSK_EVIDENCE_OCTAVES, &sums->first_square, &sums->first,
             scaled.first, probabilities->smaller, chunk);
    add_ends(counts + LSK_EVIDENCE_LAST_ROW * LSK_EVIDENCE_OCTAVES, &sums->last_square, &sums->last,
             scaled.last, probabilities->smaller, chunk);
    lanes->before = (uint64_t)has_bit(chunk->counted, chunk->count - 1);
}

static void finish_evidence(lsk_evidence *sums, const lsk_evidence_lanes *lanes) {
    sums->z = add_lanes(lanes->plain.z);
    sums->zz = add_lanes(lanes->plain.zz);
    sums->x = add_lanes(lanes->plain.x);
    sums->xx = add_lanes(lanes->plain.xx);
    sums->xz = add_lanes(lanes->plain.xz);
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

// Evidence of causes: counts and sums over the chunks that mismatch_sums goes through.
// Lockstep/Reference/ReferenceEvidence.swift says the same in scalars.

// What is kept from chunk to chunk, in lanes.
typedef struct {
    vd z[LSK_MISMATCH_PARTS], zz[LSK_MISMATCH_PARTS];
    vd x[LSK_MISMATCH_PARTS], xx[LSK_MISMATCH_PARTS], xz[LSK_MISMATCH_PARTS];
    vd square[LSK_MISMATCH_PARTS], square_up[LSK_MISMATCH_PARTS];
    vl plain[LSK_MISMATCH_PARTS];
} lsk_scaled_lanes;

typedef struct {
    vd spacing[LSK_MISMATCH_PARTS];
    vl grid[LSK_MISMATCH_PARTS];   // LSK_COUNT(0): tested, (1): bf16, (2): fp16
    vl marks[LSK_MISMATCH_PARTS];  // LSK_COUNT(0): above zero, (1): floored, (2): zero, (3): zero far
} lsk_side_lanes;

typedef struct {
    vd neighbours[LSK_MISMATCH_PARTS], here[LSK_MISMATCH_PARTS];
    vd ahead[LSK_MISMATCH_PARTS], behind[LSK_MISMATCH_PARTS];
    vl pairs[LSK_MISMATCH_PARTS];
} lsk_pair_lanes;

// What is worked out of a chunk between two goes over it: for each token z, all ones where it is plain, and
// its place in the histogram. One register more than a chunk, for the right side of the last pair.
typedef struct {
    double z[LSK_MISMATCH_CHUNK + LSK_LANES64];
    int64_t plain[LSK_MISMATCH_CHUNK + LSK_LANES64];
    int64_t bins[LSK_MISMATCH_CHUNK];
} lsk_scaled;

// The last token of a run so far: whether there is one, and what it would add.
typedef struct {
    int open;
    int64_t plain, octave;
    double square;
} lsk_run;

typedef struct {
    lsk_scaled_lanes scaled;
    lsk_side_lanes trainer, rollout;
    lsk_pair_lanes pairs;
    lsk_run run;
} lsk_evidence_lanes;

LSK_INLINE vl vl_clamp(vl x, int64_t low, int64_t high) {
    vl lower = x < low, upper = x > high;
    return (lower & low) | (upper & high) | (~(lower | upper) & x);
}

LSK_PASS add_scaled(lsk_scaled_lanes *lanes, lsk_scaled *out, const lsk_probabilities *in,
                    const lsk_chunk *chunk) {
    lsk_scaled_lanes l = *lanes;
    const vd zero = vd_splat(0), mark = vd_splat(-1000);
    for (int64_t at = 0; at < chunk->padded; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
        for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
            int64_t i = at + part * LSK_LANES64;
            vd a = vd_load(chunk->trainer + i), b = vd_load(chunk->rollout + i), d = a - b;
            vl plain = load_counted(chunk, i) & (a < zero) & (b < zero) & (a > mark) & (b > mark);
            // The smaller probability, from the larger and the sum; 1 - p exactly, or nearly so.
            vd smaller = vd_load(in->sum + i) - vd_load(in->larger + i);
            vd s = vd_max(vd_splat(1) - smaller, vd_splat(0x1p-20));
            vf_half one = __builtin_convertvector(vd_splat(1), vf_half);
            vd inverse = __builtin_convertvector(one / __builtin_convertvector(s, vf_half), vd);
            vd z = (vd)(plain & (vl)(d * inverse)), x = (vd)(plain & (vl)(b * inverse));
            d = (vd)(plain & (vl)d);
            vd_store(out->z + i, z);
            __builtin_memcpy(out->plain + i, &plain, sizeof plain);
            vl scale = vl_clamp(1022 - ((vl)s >> 52), 0, LSK_EVIDENCE_SCALES - 1);
            vl octave = vl_clamp(((vl)vd_abs(z) >> 52) - (1023 + LSK_EVIDENCE_LOWEST), 0,
                                 LSK_EVIDENCE_OCTAVES - 1);
            vl up = d > zero;
            vl bin = (scale * 2 + (up & 1)) * LSK_EVIDENCE_OCTAVES + octave;
            bin = (plain & bin) | (~plain & (LSK_EVIDENCE_BINS - 1));
            __builtin_memcpy(out->bins + i, &bin, sizeof bin);
            l.z[part] += z;
            l.zz[part] = vd_fma(z, z, l.zz[part]);
            l.x[part] += x;
            l.xx[part] = vd_fma(x, x, l.xx[part]);
            l.xz[part] = vd_fma(x, z, l.xz[part]);
            l.square[part] = vd_fma(d, d, l.square[part]);
            vd rise = (vd)(up & (vl)d);
            l.square_up[part] = vd_fma(rise, rise, l.square_up[part]);
            l.plain[part] -= plain;
        }
    }
    vd_store(out->z + chunk->padded, zero);
    memset(out->plain + chunk->padded, 0, LSK_WIDTH);
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
            vl counted = load_counted(chunk, i), plain;
            __builtin_memcpy(&plain, scaled->plain + i, sizeof plain);
            vd v = vd_load(values + i), o = vd_load(other + i);
            vl bits = (vl)v, tested = counted & (vd_abs(v) >= vd_splat(0x1p-4));
            l.grid[part] += tested & LSK_COUNT(0);
            l.grid[part] += tested & ((bits & ((INT64_C(1) << 45) - 1)) == 0) & LSK_COUNT(1);
            l.grid[part] += tested & ((bits & ((INT64_C(1) << 42) - 1)) == 0) & LSK_COUNT(2);
            vl none = counted & (v == zero) & (o < vd_splat(-0x1p-10));
            l.marks[part] += counted & (v > zero) & LSK_COUNT(0);
            l.marks[part] += counted & (v <= vd_splat(-1000)) & LSK_COUNT(1);
            l.marks[part] += none & LSK_COUNT(2);
            l.marks[part] += none & (o < vd_splat(-1)) & LSK_COUNT(3);
            vd power = (vd)(plain & bits & INT64_C(0x7ff0000000000000));
            l.spacing[part] = vd_fma(power, power, l.spacing[part]);
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
            vl left, right;
            __builtin_memcpy(&left, scaled->plain + i, sizeof left);
            __builtin_memcpy(&right, scaled->plain + i + 1, sizeof right);
            vl both = left & right;
            vd a = vd_load(chunk->trainer + i), next_a = vd_load(chunk->trainer + i + 1);
            vd b = vd_load(chunk->rollout + i), next_b = vd_load(chunk->rollout + i + 1);
            vd here = (vd_abs(a - b) + vd_abs(next_a - next_b)) * 0.5;
            l.here[part] += (vd)(both & (vl)here);
            l.ahead[part] += (vd)(both & (vl)vd_abs(a - next_b));
            l.behind[part] += (vd)(both & (vl)vd_abs(next_a - b));
            vd z = vd_load(scaled->z + i), next_z = vd_load(scaled->z + i + 1);
            l.neighbours[part] = vd_fma(z, next_z, l.neighbours[part]);
            l.pairs[part] -= both;
        }
    }
    *lanes = l;
}

// Ends a run that is open, if it is known with which token.
static void end_run(lsk_evidence *sums, uint64_t *histogram, lsk_run *run) {
    if (run->open && run->plain) {
        histogram[LSK_EVIDENCE_LAST_ROW * LSK_EVIDENCE_OCTAVES + run->octave]++;
        sums->last_square += run->square;
        sums->lasts++;
    }
    run->open = 0;
}

// Opens a run at token i, or goes on with it: it may turn out to be the last.
LSK_INLINE void reach(lsk_run *run, const lsk_scaled *scaled, const lsk_chunk *chunk, int64_t i) {
    double d = chunk->trainer[i] - chunk->rollout[i];
    run->open = 1;
    run->plain = scaled->plain[i];
    run->octave = scaled->bins[i] % LSK_EVIDENCE_OCTAVES;
    run->square = d * d;
}

// The first and the last tokens of runs among the `count` tokens of a chunk.
static void add_runs(lsk_evidence *sums, uint64_t *histogram, lsk_run *run, const lsk_scaled *scaled,
                     const lsk_chunk *chunk, int64_t count) {
    for (int64_t at = 0; at < count; at += 8) {
        uint64_t eight;
        __builtin_memcpy(&eight, chunk->counted + at, 8);
        if (eight == (run->open ? UINT64_C(0x0101010101010101) : 0)) continue;
        for (int64_t i = at; i < at + 8 && i < count; i++) {
            if (chunk->counted[i] == run->open) continue;
            if (run->open) {
                if (i > 0) reach(run, scaled, chunk, i - 1);
                end_run(sums, histogram, run);
            } else {
                reach(run, scaled, chunk, i);
                if (!run->plain) continue;
                histogram[LSK_EVIDENCE_FIRST_ROW * LSK_EVIDENCE_OCTAVES + run->octave]++;
                sums->first_square += run->square;
                sums->firsts++;
            }
        }
    }
    if (run->open) reach(run, scaled, chunk, count - 1);
}

static void add_evidence(lsk_evidence_lanes *lanes, lsk_evidence *sums, uint64_t *histogram,
                         const lsk_probabilities *probabilities, const lsk_chunk *chunk, int64_t count) {
    lsk_scaled scaled;
    add_scaled(&lanes->scaled, &scaled, probabilities, chunk);
    add_side(&lanes->trainer, chunk->trainer, chunk->rollout, &scaled, chunk);
    add_side(&lanes->rollout, chunk->rollout, chunk->trainer, &scaled, chunk);
    add_pairs(&lanes->pairs, &scaled, chunk);
    for (int64_t i = 0; i < chunk->padded; i++) histogram[scaled.bins[i]]++;
    add_runs(sums, histogram, &lanes->run, &scaled, chunk, count);
}

static void finish_side(lsk_evidence_side *side, double *spacing, const lsk_side_lanes *lanes) {
    side->tested = count_lanes(lanes->grid, 0);
    side->bf16_grid = count_lanes(lanes->grid, 1);
    side->fp16_grid = count_lanes(lanes->grid, 2);
    side->above_zero = count_lanes(lanes->marks, 0);
    side->floored = count_lanes(lanes->marks, 1);
    side->zero = count_lanes(lanes->marks, 2);
    side->zero_far = count_lanes(lanes->marks, 3);
    *spacing = add_lanes(lanes->spacing);
}

static int64_t total_of(const vl parts[LSK_MISMATCH_PARTS]) {
    int64_t lane[LSK_MISMATCH_LANES], total = 0;
    __builtin_memcpy(lane, parts, sizeof lane);
    for (int i = 0; i < LSK_MISMATCH_LANES; i++) total += lane[i];
    return total;
}

static void finish_evidence(lsk_evidence *sums, const lsk_evidence_lanes *lanes) {
    const lsk_scaled_lanes *l = &lanes->scaled;
    sums->plain = total_of(l->plain);
    sums->z = add_lanes(l->z);
    sums->zz = add_lanes(l->zz);
    sums->x = add_lanes(l->x);
    sums->xx = add_lanes(l->xx);
    sums->xz = add_lanes(l->xz);
    sums->square = add_lanes(l->square);
    sums->square_up = add_lanes(l->square_up);
    finish_side(&sums->trainer, &sums->trainer_spacing, &lanes->trainer);
    finish_side(&sums->rollout, &sums->rollout_spacing, &lanes->rollout);
    sums->pairs = total_of(lanes->pairs.pairs);
    sums->neighbours = add_lanes(lanes->pairs.neighbours);
    sums->here = add_lanes(lanes->pairs.here);
    sums->ahead = add_lanes(lanes->pairs.ahead);
    sums->behind = add_lanes(lanes->pairs.behind);
}

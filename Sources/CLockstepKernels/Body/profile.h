// Profiles of a span: sums of its tokens by position and by rollout probability.
// Lockstep/Reference/ReferenceMismatch.swift says the same in scalars.

// The index at which `wanted` tokens from `start` on have been counted, at most the chunk's end; `found` is
// how many were.
static int64_t skip_counted(const lsk_chunk *chunk, int64_t start, int64_t wanted, int64_t *found) {
    int64_t at = start;
    *found = 0;
    while (at < chunk->padded && *found < wanted) {
        uint64_t counted = chunk->counted[at / 64] >> (at % 64);
        const int64_t here = __builtin_popcountll(counted);
        if (*found + here <= wanted) {
            *found += here;
            at = (at / 64 + 1) * 64;
        } else {
            for (; *found < wanted - 1; ++*found) counted &= counted - 1;  // takes the lowest out
            ++*found;
            at += __builtin_ctzll(counted) + 1;
        }
    }
    return at < chunk->padded ? at : chunk->padded;
}

// Positions 0, 1, 2, 3, then two buckets an octave.
LSK_INLINE int position_bucket(int64_t position) {
    if (position < 2) return (int)position;
    const int octave = 63 - __builtin_clzll((uint64_t)position);
    const int bucket = 2 * octave + (int)(position >> (octave - 1) & 1);
    return bucket < LSK_POSITION_BUCKETS ? bucket : LSK_POSITION_BUCKETS - 1;
}

// Where the bucket ends.
LSK_INLINE int64_t position_end(int bucket) {
    if (bucket == LSK_POSITION_BUCKETS - 1) return INT64_MAX;
    const int next = bucket + 1;
    return next < 2 ? next : (int64_t)(2 + (next & 1)) << (next / 2 - 1);
}

// Adds the tokens of a chunk to the buckets of their positions. The run of tokens that one bucket takes of a
// chunk is summed in lanes, by the index in the chunk, and the lanes are added by halves.
LSK_PASS add_positions(lsk_mismatch_profile *profile, const lsk_chunk *chunk, const double *k3_of) {
    static const int64_t first[LSK_MISMATCH_LANES] = {0, 1, 2, 3, 4, 5, 6, 7};
    for (int64_t start = 0; start < chunk->padded;) {
        const int number = position_bucket(profile->before);
        int64_t tokens;
        const int64_t end =
            skip_counted(chunk, start, position_end(number) - profile->before, &tokens);
        vd log_ratio[LSK_MISMATCH_PARTS] = {0}, magnitude[LSK_MISMATCH_PARTS] = {0};
        vd k3[LSK_MISMATCH_PARTS] = {0};
        const int64_t whole = start / LSK_MISMATCH_LANES * LSK_MISMATCH_LANES;
        for (int64_t at = whole; at < end; at += LSK_MISMATCH_LANES) {
#pragma clang loop unroll(full)
            for (int part = 0; part < LSK_MISMATCH_PARTS; part++) {
                const int64_t i = at + part * LSK_LANES64;
                vl index;
                __builtin_memcpy(&index, first + part * LSK_LANES64, sizeof index);
                index += at;
                const vl inside = (index >= start) & (index < end);
                const vd d = (vd)(inside & (vl)(vd_load(chunk->trainer + i) - vd_load(chunk->rollout + i)));
                log_ratio[part] += d;
                magnitude[part] += vd_abs(d);
                k3[part] += (vd)(inside & (vl)vd_load(k3_of + i));
            }
        }
        lsk_mismatch_bucket *bucket = profile->position + number;
        bucket->tokens += (double)tokens;
        bucket->log_ratio += add_lanes(log_ratio);
        bucket->magnitude += add_lanes(magnitude);
        bucket->k3 += add_lanes(k3);
        profile->before += tokens;
        start = end;
    }
}

typedef double vd_bucket __attribute__((vector_size(sizeof(lsk_mismatch_bucket))));

// Adds the tokens of a chunk to the buckets of their probabilities, which are there four times: token i adds
// to copy i mod 4, so that the next token need not wait for it. Returns which buckets took some, a bit each.
static __attribute__((noinline)) uint64_t add_probabilities(lsk_mismatch_profile *profile,
                                                            const lsk_chunk *chunk, const double *k3_of) {
    int32_t numbers[LSK_MISMATCH_CHUNK];
    double differences[LSK_MISMATCH_CHUNK];
    const vd low = vd_splat(0x1.8p-21), high = vd_splat(0x1p6);
    vul used = {0};
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        const vd b = vd_load(chunk->rollout + at);
        vd_store(differences + at, vd_load(chunk->trainer + at) - b);
        const vl bucket = (vl)(((vul)vd_min(vd_max(-b, low), high) >> 51) - ((vul)low >> 51));
        const vl counted = vl_from_bits(chunk->counted, at);
        used |= (vul)(counted & vl_splat(1)) << (vul)bucket;
        const vl number = (counted & bucket) | (~counted & LSK_PROBABILITY_BUCKETS);
        const vi_half half = __builtin_convertvector(number, vi_half);
        __builtin_memcpy(numbers + at, &half, sizeof half);
    }
    for (int64_t at = 0; at < chunk->padded; at += LSK_PROBABILITY_COPIES) {
#pragma clang loop unroll(full)
        for (int copy = 0; copy < LSK_PROBABILITY_COPIES; copy++) {
            const double d = differences[at + copy];
            lsk_mismatch_bucket *bucket = profile->copies[copy] + numbers[at + copy];
            const vd_bucket token = {1, d, __builtin_fabs(d), k3_of[at + copy]};
            vd_bucket sums;
            __builtin_memcpy(&sums, bucket, sizeof sums);
            sums += token;
            __builtin_memcpy(bucket, &sums, sizeof sums);
        }
    }
    return __builtin_reduce_or(used);
}

// (copy 0 + copy 2) + (copy 1 + copy 3), in order of growing probability. The copies are zero again.
static void finish_probabilities(lsk_mismatch_profile *profile, uint64_t used) {
    memset(profile->probability, 0, sizeof profile->probability);
    for (; used; used &= used - 1) {
        const int number = __builtin_ctzll(used);
        vd_bucket copy[LSK_PROBABILITY_COPIES];
        for (int i = 0; i < LSK_PROBABILITY_COPIES; i++) {
            __builtin_memcpy(copy + i, profile->copies[i] + number, sizeof *copy);
            memset(profile->copies[i] + number, 0, sizeof *profile->copies[i]);
        }
        const vd_bucket sums = (copy[0] + copy[2]) + (copy[1] + copy[3]);
        __builtin_memcpy(profile->probability + LSK_PROBABILITY_BUCKETS - 1 - number, &sums, sizeof sums);
    }
}

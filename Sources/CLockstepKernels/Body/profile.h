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

// A bucket as a vector: its lanes are {tokens, d, |d|, k3}.
typedef double vd_bucket __attribute__((vector_size(sizeof(lsk_mismatch_bucket))));
typedef int64_t vl_bucket __attribute__((vector_size(sizeof(vd_bucket))));
// At any double; a pointer to the aligned type would promise too much, and no function may return a vector that is
// wider than a register.
typedef double vd_bucket_unaligned __attribute__((vector_size(sizeof(lsk_mismatch_bucket)), aligned(8), may_alias));
#define BUCKET_AT(place) (*(vd_bucket_unaligned *)(uintptr_t)(place))

// Writes what each token of the chunk adds to its buckets; of one that does not count only the first lane means
// nothing, the others are 0.
LSK_INLINE void write_terms(vd_bucket terms[LSK_MISMATCH_CHUNK], const lsk_chunk *chunk, const double *k3_of) {
    for (int64_t i = 0; i < chunk->padded; i += 4) {
        const vd_bucket d = BUCKET_AT(chunk->trainer + i) - BUCKET_AT(chunk->rollout + i), one = {1, 1, 1, 1};
        const vd_bucket magnitude = (vd_bucket)((vl_bucket)d & INT64_MAX), k3 = BUCKET_AT(k3_of + i);
        const vd_bucket even = __builtin_shufflevector(one, d, 0, 4, 2, 6);
        const vd_bucket odd = __builtin_shufflevector(one, d, 1, 5, 3, 7);
        const vd_bucket more_even = __builtin_shufflevector(magnitude, k3, 0, 4, 2, 6);
        const vd_bucket more_odd = __builtin_shufflevector(magnitude, k3, 1, 5, 3, 7);
        terms[i] = __builtin_shufflevector(even, more_even, 0, 1, 4, 5);
        terms[i + 1] = __builtin_shufflevector(odd, more_odd, 0, 1, 4, 5);
        terms[i + 2] = __builtin_shufflevector(even, more_even, 2, 3, 6, 7);
        terms[i + 3] = __builtin_shufflevector(odd, more_odd, 2, 3, 6, 7);
    }
}

// Adds the tokens of a chunk to the buckets of their positions. The run of tokens that one bucket takes of a
// chunk is summed in four lanes, token i of the run in lane i mod 4, and they are added as (0 + 2) + (1 + 3).
LSK_INLINE void add_positions(lsk_mismatch_profile *profile, const lsk_chunk *chunk, const vd_bucket *terms) {
    for (int64_t start = 0; start < chunk->padded;) {
        const int number = position_bucket(profile->before);
        int64_t tokens;
        const int64_t end =
            skip_counted(chunk, start, position_end(number) - profile->before, &tokens);
        vd_bucket lanes[4] = {{0}};
        int64_t i = start;
        for (; i + 4 <= end; i += 4) {
            LSK_UNROLL
            for (int lane = 0; lane < 4; lane++) lanes[lane] += terms[i + lane];
        }
        if (i < end) lanes[0] += terms[i];
        if (i + 1 < end) lanes[1] += terms[i + 1];
        if (i + 2 < end) lanes[2] += terms[i + 2];
        vd_bucket run = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        run[0] = (double)tokens;
        BUCKET_AT(profile->position + number) += run;
        profile->before += tokens;
        start = end;
    }
}

// Adds the tokens of a chunk to the buckets of their probabilities, which are there four times: token i adds
// to copy i mod 4, so that the next token need not wait for it.
LSK_INLINE void add_probabilities(lsk_mismatch_profile *profile, const lsk_chunk *chunk, const vd_bucket *terms) {
    for (int64_t at = 0; at < chunk->padded; at += LSK_PROBABILITY_COPIES) {
        LSK_UNROLL
        for (int copy = 0; copy < LSK_PROBABILITY_COPIES; copy++) {
            char *bucket = (char *)profile->copies[copy] + chunk->buckets[at + copy];
            BUCKET_AT(bucket) += terms[at + copy];
        }
    }
}

LSK_PASS add_profile(lsk_mismatch_profile *profile, const lsk_chunk *chunk, const double *k3_of) {
    vd_bucket terms[LSK_MISMATCH_CHUNK];
    write_terms(terms, chunk, k3_of);
    add_positions(profile, chunk, terms);
    add_probabilities(profile, chunk, terms);
}

// (copy 0 + copy 2) + (copy 1 + copy 3), in order of growing probability, of the buckets that may have taken some;
// the others are 0. The copies are zero again.
static void finish_probabilities(lsk_mismatch_profile *profile, int32_t least, int32_t most) {
    memset(profile->probability, 0, sizeof profile->probability);
    for (int32_t number = least / LSK_BUCKET_BYTES; number <= most / LSK_BUCKET_BYTES; number++) {
        vd_bucket copy[LSK_PROBABILITY_COPIES];
        LSK_UNROLL
        for (int i = 0; i < LSK_PROBABILITY_COPIES; i++) {
            copy[i] = BUCKET_AT(profile->copies[i] + number);
            memset(profile->copies[i] + number, 0, sizeof *profile->copies[i]);
        }
        BUCKET_AT(profile->probability + LSK_PROBABILITY_BUCKETS - 1 - number) =
            (copy[0] + copy[2]) + (copy[1] + copy[3]);
    }
}

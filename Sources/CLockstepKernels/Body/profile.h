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

// A bucket as a vector: its lanes are {tokens, d, k3, |d|}.
typedef double vd_bucket __attribute__((vector_size(sizeof(lsk_mismatch_bucket))));
typedef int64_t vl_bucket __attribute__((vector_size(sizeof(vd_bucket))));
typedef double vd_two __attribute__((vector_size(sizeof(lsk_mismatch_bucket) / 2)));
// At any double; a pointer to the aligned type would promise too much, and no function may return a vector that is
// wider than a register.
typedef double vd_bucket_unaligned __attribute__((vector_size(sizeof(lsk_mismatch_bucket)), aligned(8), may_alias));
#define BUCKET_AT(place) (*(vd_bucket_unaligned *)(uintptr_t)(place))

// What two tokens add to their buckets; of one that does not count only the first lane means nothing, the others
// are 0.
LSK_INLINE void make_terms(vd_bucket terms[2], const double *d_of, const double *k3_of) {
    vd_two d, k3;
    const vd_two one = {1, 1};
    __builtin_memcpy(&d, d_of, sizeof d);
    __builtin_memcpy(&k3, k3_of, sizeof k3);
    const vl_bucket no_sign = {-1, -1, INT64_MAX, INT64_MAX};
    const vd_bucket twice = (vd_bucket)((vl_bucket)__builtin_shufflevector(d, d, 0, 1, 0, 1) & no_sign);
    const vd_bucket other = __builtin_shufflevector(one, k3, 0, 1, 2, 3);
    terms[0] = __builtin_shufflevector(other, twice, 0, 4, 2, 6);
    terms[1] = __builtin_shufflevector(other, twice, 1, 5, 3, 7);
}

// Adds tokens `i` to i + 3 of a chunk, or as many of them as `count` says, to the buckets of their probabilities and
// to four lanes. The buckets are there four times: token i adds to copy i mod 4, so that the next token need not wait
// for it.
LSK_INLINE void add_four(vd_bucket lanes[4], char *const copies[4], const lsk_chunk *chunk, const double *k3_of,
                         int64_t i, int64_t count) {
    vd_bucket terms[4];
    make_terms(terms, chunk->d + i, k3_of + i);
    make_terms(terms + 2, chunk->d + i + 2, k3_of + i + 2);
    LSK_UNROLL
    for (int lane = 0; lane < 4; lane++) {
        if (lane >= count) break;
        lanes[lane] += terms[lane];
        BUCKET_AT(copies[lane] + chunk->buckets[i + lane]) += terms[lane];
    }
}

// Adds the tokens of a chunk to the buckets of their probabilities and positions. The run of tokens that one bucket
// of positions takes of a chunk is summed in four lanes, token i of the run in lane i mod 4, and they are added as
// (0 + 2) + (1 + 3).
LSK_PASS add_profile(lsk_mismatch_profile *profile, const lsk_chunk *chunk, const double *k3_of) {
    for (int64_t start = 0; start < chunk->padded;) {
        const int number = position_bucket(profile->before);
        int64_t tokens;
        const int64_t end =
            skip_counted(chunk, start, position_end(number) - profile->before, &tokens);
        char *copies[4];
        for (int lane = 0; lane < 4; lane++) copies[lane] = (char *)profile->copies[(start + lane) % 4];
        vd_bucket lanes[4] = {{0}};
        int64_t i = start;
        for (; i + 4 <= end; i += 4) add_four(lanes, copies, chunk, k3_of, i, 4);
        if (i < end) add_four(lanes, copies, chunk, k3_of, i, end - i);
        vd_bucket run = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
        run[0] = (double)tokens;
        BUCKET_AT(profile->position + number) += run;
        profile->before += tokens;
        start = end;
    }
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

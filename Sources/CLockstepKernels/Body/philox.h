// Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3" (SC 2011): ten rounds of two 32 x 32 -> 64 bit products turn a 128-bit counter and
// a 64-bit key into four random words. Its own state is nothing, so a number depends on where it is used
// and not on what was drawn before.

// The low and high words of a * m, lane by lane: products of the even and of the odd lanes.
LSK_INLINE void philox_multiply(vu *low, vu *high, vu a, uint32_t m) {
    vul even = ((vul)a & 0xffffffffu) * (uint64_t)m, odd = ((vul)a >> 32) * (uint64_t)m;
    *low = (vu)((even & 0xffffffffu) | (odd << 32));
    *high = (vu)((even >> 32) | (odd & ~(uint64_t)0xffffffffu));
}

// The words of LSK_LANES consecutive counters, `counter` the first: words[4 i + j] is word j of counter
// + i. The high 64 bits of the counter are 0.
LSK_INLINE void philox(uint32_t *words, uint64_t key, uint64_t counter) {
    vu lane;
    for (int i = 0; i < LSK_LANES; i++) lane[i] = (uint32_t)i;
    vu c0 = lane + (uint32_t)counter;
    vu c1 = (uint32_t)(counter >> 32) - (vu)(c0 < lane);  // a mask is -1: this adds the carry
    vu c2 = {}, c3 = {};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        vu low0, high0, low1, high1;
        philox_multiply(&low0, &high0, c0, 0xd2511f53u);
        philox_multiply(&low1, &high1, c2, 0xcd9e8d57u);
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    const vu columns[4] = {c0, c1, c2, c3};
    uint32_t column[4][LSK_LANES];
    __builtin_memcpy(column, columns, sizeof column);
    for (int i = 0; i < LSK_LANES; i++)
        for (int j = 0; j < 4; j++) words[4 * i + j] = column[j][i];
}

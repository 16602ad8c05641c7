// What objectives read: a sequence's tokens, 128 at a time, widened to float64, and which of them count.

#define LSK_OBJECTIVE_CHUNK 128
#define LSK_PARTS LSK_MISMATCH_PARTS  // registers that hold 8 lanes
#define LSK_EACH_PART LSK_UNROLL for (int part = 0; part < LSK_PARTS; part++)

// Arrays that a span does not have are filled once; those of a chunk may hold anything where no token counts.
typedef struct {
    double value[LSK_OBJECTIVE_INPUTS][LSK_OBJECTIVE_CHUNK + LSK_LANES];
    double log_ratio[LSK_OBJECTIVE_CHUNK], ratio[LSK_OBJECTIVE_CHUNK];
    double by_log_ratio[LSK_OBJECTIVE_CHUNK], by_current[LSK_OBJECTIVE_CHUNK];
    int64_t moves[LSK_OBJECTIVE_CHUNK];  // all ones: delta moves x
    uint8_t counted[LSK_OBJECTIVE_CHUNK], acting[LSK_OBJECTIVE_CHUNK], selected[LSK_OBJECTIVE_CHUNK];
    int64_t count, padded;
    int64_t non_finite;
} lsk_objective_chunk;

LSK_INLINE vl load_flags(const uint8_t *flags, int64_t at) { return load_bytes(flags + at); }

LSK_INLINE vl load_moves(const lsk_objective_chunk *chunk, int64_t at) {
    vl v;
    __builtin_memcpy(&v, chunk->moves + at, sizeof v);
    return v;
}

// For chunks of at most `count` tokens, a multiple of 8.
static void begin_chunks(lsk_objective_chunk *chunk, const lsk_objective_span *span, int64_t count) {
    if (!span->selected) memset(chunk->selected, 0, (size_t)count);
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
        if (span->input[input]) continue;
        double value = input == LSK_INPUT_ADVANTAGE ? span->advantage : input == LSK_INPUT_WEIGHT ? 1 : 0;
        for (int64_t i = 0; i < count; i++) chunk->value[input][i] = value;
    }
}

typedef uint8_t lsk_flags __attribute__((vector_size(LSK_WIDTH)));

LSK_INLINE lsk_flags flags_load(const uint8_t *p) {
    lsk_flags v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}
LSK_INLINE void flags_store(uint8_t *p, lsk_flags v) { __builtin_memcpy(p, &v, sizeof v); }

// flags &= mask != 0, of up to 128 bytes; with `inverse`, flags &= mask == 0.
static void and_flags(uint8_t *flags, const uint8_t *mask, int64_t count, int inverse) {
    uint8_t bytes[LSK_OBJECTIVE_CHUNK];
    if (count < LSK_OBJECTIVE_CHUNK) mask = memcpy(bytes, mask, (size_t)count);
    for (int64_t i = 0; i < count; i += LSK_WIDTH) {
        lsk_flags set = (lsk_flags)(flags_load(mask + i) != 0);
        flags_store(flags + i, flags_load(flags + i) & (inverse ? ~set : set));
    }
}

// Which of the chunk's tokens count, and of which the policy term does, as far as the masks say; returns 0
// if none counts. All 128 flags are set.
static int load_masks(lsk_objective_chunk *chunk, const lsk_objective_span *span,
                      const lsk_objective_rule *rule, int64_t start) {
    int64_t count = span->count - start;
    if (count > LSK_OBJECTIVE_CHUNK) count = LSK_OBJECTIVE_CHUNK;
    chunk->count = count;
    chunk->padded = (count + 7) / 8 * 8;
    chunk->non_finite = 0;
    memset(chunk->counted, 1, LSK_OBJECTIVE_CHUNK);
    if (count < LSK_OBJECTIVE_CHUNK) memset(chunk->counted + count, 0, (size_t)(LSK_OBJECTIVE_CHUNK - count));
    if (span->mask) and_flags(chunk->counted, span->mask + start, count, 0);
    memcpy(chunk->acting, chunk->counted, LSK_OBJECTIVE_CHUNK);
    if (span->kept) and_flags(chunk->acting, span->kept + start, count, 0);
    if (rule->drop_rejected) memcpy(chunk->counted, chunk->acting, LSK_OBJECTIVE_CHUNK);
    if (span->selected) {
        memset(chunk->selected, 0, LSK_OBJECTIVE_CHUNK);
        memcpy(chunk->selected, span->selected + start, (size_t)count);
        // A token that a covariance rule takes out of the clipped objective keeps only its regularisers.
        if (rule->term == LSK_CLIP) and_flags(chunk->acting, chunk->selected, count, 1);
    }
    lsk_flags any = {0};
    for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i += LSK_WIDTH) any |= flags_load(chunk->counted + i);
    uint64_t words[LSK_WIDTH / 8], found = 0;
    __builtin_memcpy(words, &any, sizeof words);
    for (int i = 0; i < LSK_WIDTH / 8; i++) found |= words[i];
    return found != 0;
}

// How many of 128 flags, each 1 or 0, are set.
static int64_t count_flags(const uint8_t *flags) {
    uint64_t total = 0;
    for (int i = 0; i < LSK_OBJECTIVE_CHUNK; i += 8) {
        uint64_t word;
        __builtin_memcpy(&word, flags + i, 8);
        total += word;  // at most 16 in each byte
    }
    const uint64_t even = 0x00ff00ff00ff00ff, pairs = (total & even) + (total >> 8 & even);
    return (int64_t)(pairs * 0x0001000100010001 >> 48);
}

// Takes the tokens with a value that is not finite out, and counts them.
static void exclude_non_finite(lsk_objective_chunk *chunk) {
    for (int64_t at = 0; at < chunk->padded; at += LSK_LANES64) {
        vd nothing = {0};
        for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
            vd x = vd_load(chunk->value[input] + at);
            nothing += x - x;
        }
        vl counted = load_flags(chunk->counted, at), finite = counted & (nothing == 0);
        vl acting = load_flags(chunk->acting, at) & finite;
        vb64 bytes = __builtin_convertvector(finite & 1, vb64);
        __builtin_memcpy(chunk->counted + at, &bytes, sizeof bytes);
        bytes = __builtin_convertvector(acting & 1, vb64);
        __builtin_memcpy(chunk->acting + at, &bytes, sizeof bytes);
        for (int i = 0; i < LSK_LANES64; i++) chunk->non_finite += (counted & ~finite & 1)[i];
    }
}

// Loads the values of the tokens whose masks were loaded.
static void load_values(lsk_objective_chunk *chunk, const lsk_objective_span *span,
                        const lsk_objective_rule *rule, int64_t start) {
    for (int input = 0; input < LSK_OBJECTIVE_INPUTS; input++) {
        if (!span->input[input]) continue;
        const int32_t format = span->format[input];
        const char *in = (const char *)span->input[input] + start * size_of(format);
        load_doubles(chunk->value[input], in, format, chunk->count);
        for (int64_t i = chunk->count; i < chunk->padded; i++) chunk->value[input][i] = 0;
    }
    if (rule->exclude) exclude_non_finite(chunk);
}

// Loads up to 128 tokens from `start` on; returns 0, and loads nothing, if the masks leave them all out.
static int load_objective(lsk_objective_chunk *chunk, const lsk_objective_span *span,
                          const lsk_objective_rule *rule, int64_t start) {
    if (!load_masks(chunk, span, rule, start)) return 0;
    load_values(chunk, span, rule, start);
    return 1;
}

// ---- counting

// Whether anything in `count` values of an array is not finite: 0 times it is not 0.
static int has_non_finite(const char *in, int32_t format, int64_t count) {
    vd wide = {0};
    vf narrow[4] = {{0}};  // sums that do not wait for each other
    int64_t at = 0;
    if (format == LSK_FP64) {
        for (; at + LSK_LANES64 <= count; at += LSK_LANES64) wide = vd_fma(vd_load((const double *)in + at), (vd){}, wide);
        double rest = 0;
        for (; at < count; at++) rest += ((const double *)in)[at] - ((const double *)in)[at];
        if (rest != 0) return 1;
    } else {
        for (; at + 4 * LSK_LANES <= count; at += 4 * LSK_LANES)
            LSK_UNROLL for (int i = 0; i < 4; i++)
                narrow[i] = vf_fma(load_floats(in + (at + i * LSK_LANES) * size_of(format), format), (vf){}, narrow[i]);
        for (; at + LSK_LANES <= count; at += LSK_LANES)
            narrow[0] = vf_fma(load_floats(in + at * size_of(format), format), (vf){}, narrow[0]);
        if (at < count) {  // some of them a second time, if there is a register of them
            vf x = count < LSK_LANES ? load_some_floats(in, format, count)
                                     : load_floats(in + (count - LSK_LANES) * size_of(format), format);
            narrow[1] = vf_fma(x, (vf){}, narrow[1]);
        }
    }
    vf all = narrow[0] + narrow[1] + (narrow[2] + narrow[3]);
    int found = 0;
    for (int i = 0; i < LSK_LANES; i++) found |= all[i] != 0;
    for (int i = 0; i < LSK_LANES64; i++) found |= wide[i] != 0;
    return found;
}

// Whether an array from `first` on has anything that is not finite, be it where no token counts.
static int is_suspect(const lsk_objective_span *span, int first, int64_t start, int64_t count) {
    int suspect = 0;
    for (int input = first; input < LSK_OBJECTIVE_INPUTS; input++) {
        if (!span->input[input]) continue;
        const int32_t format = span->format[input];
        suspect |= has_non_finite((const char *)span->input[input] + start * size_of(format), format, count);
    }
    return suspect;
}

static void add_counts_of(lsk_objective_counts *counts, const lsk_objective_chunk *chunk) {
    counts->tokens += count_flags(chunk->counted);
    counts->acting += count_flags(chunk->acting);
    counts->non_finite += chunk->non_finite;
}

static void objective_count(lsk_objective_counts *counts, const lsk_objective_span *span,
                            const lsk_objective_rule *rule) {
    lsk_objective_chunk chunk;
    lsk_objective_rule careful = *rule;
    memset(counts, 0, sizeof *counts);
    for (int64_t start = 0; start < span->count; start += LSK_OBJECTIVE_CHUNK) {
        if (!load_masks(&chunk, span, rule, start)) continue;
        const int suspect = !(span->advantage - span->advantage == 0) |
                            is_suspect(span, LSK_INPUT_CURRENT, start, chunk.count);
        if (suspect) {  // perhaps only where no token counts
            careful.exclude = 1;
            begin_chunks(&chunk, span, LSK_OBJECTIVE_CHUNK);
            load_objective(&chunk, span, &careful, start);
        }
        add_counts_of(counts, &chunk);
    }
}

/* Attention within sequences of any lengths, included once for each instruction set.
 *
 * One head of one sequence is one piece of work: its keys and values are laid out as panels, then ROWS queries at a
 * time see all keys, their weights become a softmax in place, and the values are summed by them. Scores of a few
 * queries are all that is kept.
 */

/* exp(x) for x <= 0, to the last digit or two of float32; 0 below -87, where weights stop counting; NaN for NaN. */
TARGET static inline FLOATS NAME(exponential)(FLOATS x)
{
    const float round = 12582912.0f; /* 1.5 * 2**23: adding it rounds to a whole number, in the lowest bits */
    FLOATS shifted = x * 1.44269504f + round, whole = shifted - round;
    FLOATS rest = x - whole * 0.693359375f - whole * -2.12194440e-4f; /* ln 2 in two parts, the first exact */
    FLOATS y = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    INTS power = ((INTS)shifted << 23) & (INTS)(x == x); /* 2**whole; what some NaNs hold would make y a number */
    INTS bits = (INTS)y + power;
    return (FLOATS)(bits & ~(INTS)(x <= -87.0f));
}

/* Turn a row of scores into weights, from which the softmax is one factor away: it is returned. Keys below first or from
 * stop on get none. */
TARGET static inline float NAME(softmax)(float *scores, int64_t first, int64_t stop, int64_t padded_first,
                                         int64_t padded_stop)
{
    if (first >= stop) {
        memset(scores + padded_first, 0, sizeof(float) * (padded_stop - padded_first));
        return 0;
    }
    for (int64_t k = padded_first; k < first; k++)
        scores[k] = -INFINITY;
    for (int64_t k = stop; k < padded_stop; k++)
        scores[k] = -INFINITY;
    FLOATS top = FLOATS_AT(scores + padded_first);
    for (int64_t k = padded_first; k < padded_stop; k += LANES)
        top = LARGER(FLOATS_AT(scores + k), top);
    float largest = top[0];
    for (int lane = 1; lane < LANES; lane++)
        largest = top[lane] > largest ? top[lane] : largest;
    FLOATS sums = {0};
    for (int64_t k = padded_first; k < padded_stop; k += LANES) {
        FLOATS weight = NAME(exponential)(FLOATS_AT(scores + k) - largest);
        FLOATS_AT(scores + k) = weight;
        sums += weight;
    }
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++)
        sum += sums[lane];
    return 1.0f / sum;
}

/* Room that a thread needs, all float32. */
struct NAME(attention_room) {
    float *keys;    /* (panels of keys, head_dim, TOKENS) */
    float *values;  /* (panels of a head's dimensions, padded keys, TOKENS) */
    float *queries; /* (ROWS, head_dim) */
    float *scores;  /* (ROWS, padded keys) */
    float *row;     /* (padded head_dim,) */
};

TARGET static inline void NAME(load_row)(const struct attention *job, const void *from, int64_t token, int64_t head,
                                         float scale, float *restrict to)
{
    int64_t dim = job->head_dim, at = token * job->stride + head * dim; /* dim, lest the loop read it each time */
    ask_for_token(job, from, token + 16, head);
    if (job->storage == BFLOAT16) {
        NAME(bfloats_as_floats)((const uint16_t *)from + at, dim, scale, to);
        return;
    }
    const float *row = (const float *)from + at;
    for (int64_t k = 0; k < dim; k++)
        to[k] = row[k] * scale;
}

/* The same of queries and keys, turned by the place of the token. */
TARGET static inline void NAME(load_turned)(const struct attention *job, const void *from, int64_t token, int64_t head,
                                            float scale, float *to)
{
    int64_t half = job->head_dim / 2;
    NAME(load_row)(job, from, token, head, scale, to);
    if (!job->cosines)
        return;
    const float *cosines = job->cosines + token * half, *sines = job->sines + token * half;
    float *restrict left = to, *restrict right = to + half;
    for (int64_t k = 0; k < half; k++) {
        float a = left[k], b = right[k];
        left[k] = a * cosines[k] - b * sines[k];
        right[k] = b * cosines[k] + a * sines[k];
    }
}

/* Lay out keys and values of a piece. */
TARGET static void NAME(lay_out)(const struct attention *job, struct NAME(attention_room) *room, const struct piece *piece)
{
    int64_t attended = piece->attended, padded = piece->padded;
    int64_t dim = job->head_dim, groups = (dim + TOKENS - 1) / TOKENS;
    for (int64_t token = 0; token < padded; token++) {
        float *key = room->keys + token / TOKENS * TOKENS * dim + token % TOKENS;
        memset(room->row, 0, sizeof(float) * groups * TOKENS);
        if (token < attended)
            NAME(load_turned)(job, job->keys, piece->begin + token, piece->head, 1.0f, room->row);
        for (int64_t k = 0; k < dim; k++)
            key[k * TOKENS] = room->row[k];
        if (token < attended)
            NAME(load_row)(job, job->values, piece->begin + token, piece->head, 1.0f, room->row);
        for (int64_t g = 0; g < groups; g++)
            memcpy(room->values + (g * padded + token) * TOKENS, room->row + g * TOKENS, sizeof(float) * TOKENS);
    }
}

TARGET static inline void NAME(store_row)(const struct attention *job, int64_t token, int64_t at, int64_t count,
                                          const float *from)
{
    int64_t place = token * job->heads * job->head_dim + at;
    if (job->storage == BFLOAT16)
        NAME(floats_as_bfloats)(from, count, (uint16_t *)job->out + place);
    else
        memcpy((float *)job->out + place, from, sizeof(float) * count);
}

/* Some queries of a piece; first is the place of the first of them in the sequence. */
TARGET static void NAME(attend)(const struct attention *job, struct NAME(attention_room) *room, const struct piece *piece,
                                int64_t first, int64_t count)
{
    int64_t dim = job->head_dim, padded = piece->padded;
    struct range seen = keys_seen(job, piece, first, count);
    int64_t from = seen.first / TOKENS * TOKENS, to = (seen.stop + TOKENS - 1) / TOKENS * TOKENS; /* whole panels */
    to = to < from ? from : to; /* none of them sees a key */
    FLOATS sums[ROWS][WIDTH];
    float shares[ROWS];
    for (int64_t r = 0; r < ROWS; r++)
        NAME(load_turned)(job, job->queries, piece->begin + first + (r < count ? r : count - 1), piece->head, job->scale,
                          room->queries + r * dim);
    for (int64_t key = from; key < to; key += TOKENS) {
        NAME(multiply)(room->queries, dim, dim, room->keys + key * dim, NULL, 0, sums);
        for (int r = 0; r < ROWS; r++)
            for (int w = 0; w < WIDTH; w++)
                FLOATS_AT(room->scores + r * padded + key + w * LANES) = sums[r][w];
    }
    for (int64_t r = 0; r < ROWS; r++) {
        seen = keys_seen(job, piece, first + (r < count ? r : count - 1), 1);
        shares[r] = NAME(softmax)(room->scores + r * padded, seen.first, seen.stop, from, to);
    }
    for (int64_t column = 0; column < dim; column += TOKENS) {
        const float *values = room->values + (column / TOKENS * padded + from) * TOKENS;
        NAME(multiply)(room->scores + from, padded, to - from, values, NULL, 0, sums);
        int64_t some = dim - column < TOKENS ? dim - column : TOKENS;
        for (int64_t r = 0; r < count; r++) {
            for (int w = 0; w < WIDTH; w++)
                sums[r][w] *= shares[r];
            NAME(store_row)(job, piece->begin + first + r, piece->head * dim + column, some, (const float *)sums[r]);
        }
    }
}

TARGET static int NAME(attention)(const struct attention *job, int32_t threads)
{
    int64_t longest = longest_of(job, TOKENS), dim = job->head_dim, wide = (dim + TOKENS - 1) / TOKENS * TOKENS;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        struct NAME(attention_room) room;
        float *all = malloc(sizeof(float) * (longest * dim + longest * wide + ROWS * dim + ROWS * longest + wide + 1));
        room.keys = all;
        room.values = room.keys + longest * dim;
        room.queries = room.values + longest * wide;
        room.scores = room.queries + ROWS * dim;
        room.row = room.scores + ROWS * longest;
        if (!all) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < job->sequences * job->heads; number++) {
            struct piece piece = piece_of(job, number, TOKENS);
            if (!all || !piece.length)
                continue;
            NAME(lay_out)(job, &room, &piece);
            for (int64_t first = 0; first < piece.length; first += ROWS)
                NAME(attend)(job, &room, &piece, first, piece.length - first < ROWS ? piece.length - first : ROWS);
        }
        free(all);
    }
    return failed;
}

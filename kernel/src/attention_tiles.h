/* Attention in bfloat16 by AMX, for heads of a multiple of 32 coordinates; attention.h says what it computes, and does the
 * others.
 *
 * Weights stay as exact as with vectors: each is multiplied as the bfloat16 next to it and the bfloat16 next to what is
 * missing then. Products are so cheap here that this costs nothing beside the exponentials.
 */
struct tile_attention_room {
    uint32_t *keys;    /* (panels of keys, head_dim / 2, TILE_TOKENS) pairs of bfloat16 */
    uint16_t *values;  /* (panels of coordinates, padded keys / 2, TILE_TOKENS, 2) bfloat16 */
    uint16_t *queries; /* (TILE_ROWS, head_dim) bfloat16, for the last rows of a sequence */
    float *scores;     /* (TILE_ROWS, padded keys) */
    uint16_t *weights; /* (2, TILE_ROWS, padded keys) bfloat16 */
    void *sums;        /* (TILE_ROWS, TILE_TOKENS) float32 */
};

/* Lay out keys and values of a piece; zeros up to the next whole panel. */
TILE_TARGET static void lay_out_panels(const struct attention *job, struct tile_attention_room *room,
                                       const struct piece *piece)
{
    int64_t attended = piece->attended, padded = piece->padded;
    int64_t dim = job->head_dim, at = piece->begin * job->stride + piece->head * dim;
    const uint16_t *keys = (const uint16_t *)job->keys + at, *values = (const uint16_t *)job->values + at;
    const __m256i none = _mm256_setzero_si256();
    const __m512i order = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_mullo_epi32(order, _mm512_set1_epi32((int32_t)job->stride)); /* of 16 tokens */
    for (int64_t token = 0; token < padded; token += 16) {
        uint32_t *panel = room->keys + token / TILE_TOKENS * TILE_TOKENS * dim / 2 + token % TILE_TOKENS;
        __mmask16 there = token + 16 <= attended ? 0xffff : token < attended ? (__mmask16)((1 << (attended - token)) - 1) : 0;
        for (int64_t pair = 0; pair < dim / 2; pair++) {
            const uint16_t *from = keys + token * job->stride + 2 * pair;
            __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places, (const void *)from, 2);
            _mm512_storeu_si512(panel + pair * TILE_TOKENS, pairs);
        }
    }
    for (int64_t token = 0; token < padded; token += 2)
        for (int64_t k = 0; k < dim; k += 16) {
            const uint16_t *pair = values + token * job->stride + k;
            __m256i first = token < attended ? _mm256_loadu_si256((const void *)pair) : none;
            __m256i second = token + 1 < attended ? _mm256_loadu_si256((const void *)(pair + job->stride)) : none;
            __m512i both = _mm512_or_si512(_mm512_cvtepu16_epi32(first), _mm512_slli_epi32(_mm512_cvtepu16_epi32(second), 16));
            int64_t panel = k / TILE_TOKENS * padded * TILE_TOKENS;
            _mm512_storeu_si512(room->values + panel + token * TILE_TOKENS + k % TILE_TOKENS * 2, both);
        }
}

/* A row of scores as weights, upper + lower, from which the softmax is one factor away: it is returned. Keys below first
 * or from stop on get none. */
TILE_TARGET static float split_softmax(float *scores, int64_t first, int64_t stop, int64_t padded_first, int64_t padded_stop,
                                       float scale, uint16_t *upper, uint16_t *lower)
{
    for (int64_t k = padded_first; k < padded_stop; k++)
        if (k < first || k >= stop)
            scores[k] = -INFINITY;
    __m512 tops = _mm512_loadu_ps(scores + padded_first), sums = _mm512_setzero_ps(), scales = _mm512_set1_ps(scale);
    for (int64_t k = padded_first; k < padded_stop; k += 16)
        tops = _mm512_max_ps(_mm512_loadu_ps(scores + k), tops);
    /* Without a key all are -inf: 0 takes the place of the largest, and all weights become 0. */
    __m512 top = _mm512_set1_ps(first < stop ? _mm512_reduce_max_ps(tops) : 0.0f);
    for (int64_t k = padded_first; k < padded_stop; k += 16) {
        __m512 below = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + k), top), scales);
        __m512 weight = (__m512)exponential_avx512_dot((floats_avx512_dot)below);
        __m256i near = (__m256i)_mm512_cvtneps_pbh(weight);
        __m512 missing = _mm512_sub_ps(weight, (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(near), 16));
        _mm256_storeu_si256((void *)(upper + k), near);
        _mm256_storeu_si256((void *)(lower + k), (__m256i)_mm512_cvtneps_pbh(missing));
        sums = _mm512_add_ps(sums, weight);
    }
    return first < stop ? 1.0f / _mm512_reduce_add_ps(sums) : 0.0f;
}

/* Some queries of a piece, as attend of attention.h. */
TILE_TARGET static void attend_by_tiles(const struct attention *job, struct tile_attention_room *room,
                                        const struct piece *piece, int64_t first, int64_t count)
{
    int64_t dim = job->head_dim, padded = piece->padded, stride = job->stride, begin = piece->begin + first;
    const uint16_t *queries = (const uint16_t *)job->queries + begin * stride + piece->head * dim;
    struct range seen = keys_seen(job, piece, first, count);
    int64_t from = seen.first / TILE_TOKENS * TILE_TOKENS, to = (seen.stop + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    float shares[TILE_ROWS];
    if (count < TILE_ROWS) {
        for (int64_t r = 0; r < TILE_ROWS; r++)
            memcpy(room->queries + r * dim, queries + (r < count ? r : count - 1) * stride, sizeof *queries * dim);
        queries = room->queries;
        stride = dim;
    }
    for (int64_t key = from; key < to; key += TILE_TOKENS) {
        clear_tile();
        add_to_tile((const char *)queries, 2 * stride, 2 * dim, 64, (const char *)(room->keys + key * dim / 2), NULL, 0);
        store_tile(room->scores + key, 4 * padded);
    }
    for (int64_t r = 0; r < TILE_ROWS; r++) {
        seen = keys_seen(job, piece, first + (r < count ? r : count - 1), 1);
        uint16_t *upper = room->weights + r * padded, *lower = upper + TILE_ROWS * padded;
        shares[r] = split_softmax(room->scores + r * padded, seen.first, seen.stop, from, to, job->scale, upper, lower);
    }
    for (int64_t column = 0; column < dim; column += TILE_TOKENS) {
        const char *values = (const char *)(room->values + column * padded + from * TILE_TOKENS);
        const char *upper = (const char *)(room->weights + from), *lower = upper + 2 * TILE_ROWS * padded;
        clear_tile();
        add_to_tile(upper, 2 * padded, 2 * (to - from), 64, values, NULL, 0);
        add_to_tile(lower, 2 * padded, 2 * (to - from), 64, values, NULL, 0);
        store_tile(room->sums, 4 * TILE_TOKENS);
        for (int64_t r = 0; r < count; r++)
            for (int64_t k = 0; k < TILE_TOKENS; k += 16) {
                __m512 sums = _mm512_load_ps((const float *)room->sums + r * TILE_TOKENS + k);
                __m256i some = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums, _mm512_set1_ps(shares[r])));
                int64_t at = ((begin + r) * job->heads + piece->head) * dim + column + k;
                _mm256_storeu_si256((void *)((uint16_t *)job->out + at), some);
            }
    }
}

TILE_TARGET static int attention_amx(const struct attention *job, int32_t threads)
{
    int64_t longest = longest_of(job, TILE_TOKENS), dim = job->head_dim;
    int failed = 0;
    if (job->storage != BFLOAT16 || dim % TILE_TOKENS)
        return attention_avx512_dot(job, threads);
#pragma omp parallel num_threads(threads)
    {
        struct tile_attention_room room = {0};
        int64_t panels = 2 * longest * dim, sums = 4 * TILE_ROWS * TILE_TOKENS; /* bytes, all multiples of 64 */
        char *all = aligned_alloc(64, sums + 2 * panels + 2 * TILE_ROWS * dim + 8 * TILE_ROWS * longest);
        if (all) {
            room.sums = all;
            room.keys = (uint32_t *)(all + sums);
            room.values = (uint16_t *)(all + sums + panels);
            room.queries = room.values + longest * dim;
            room.scores = (float *)(room.queries + TILE_ROWS * dim);
            room.weights = (uint16_t *)(room.scores + TILE_ROWS * longest);
            shape_tiles(64);
        } else {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < job->sequences * job->heads; number++) {
            struct piece piece = piece_of(job, number, TILE_TOKENS);
            if (!all || !piece.length)
                continue;
            lay_out_panels(job, &room, &piece);
            for (int64_t first = 0; first < piece.length; first += TILE_ROWS)
                attend_by_tiles(job, &room, &piece, first, piece.length - first < TILE_ROWS ? piece.length - first : TILE_ROWS);
        }
        if (all)
            _tile_release();
        free(all);
    }
    return failed;
}

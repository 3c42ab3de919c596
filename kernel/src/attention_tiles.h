/* Attention in bfloat16 by AMX, for heads of a multiple of 32 coordinates; attention.h says what it computes, and does the
 * others.
 *
 * Weights stay as exact as with vectors: each is multiplied as the bfloat16 next to it and the bfloat16 next to what is
 * missing then. Products are so cheap here that this costs nothing beside the exponentials.
 */
struct tile_attention_room {
    uint32_t *keys;    /* (panels of keys, head_dim / 2, TILE_TOKENS) pairs of bfloat16 */
    uint16_t *values;  /* (panels of coordinates, padded keys / 2, TILE_TOKENS, 2) bfloat16 */
    uint16_t *rows;    /* (TILE_ROWS, head_dim) bfloat16: queries or keys that are turned, or the last of a sequence */
    float *scores;     /* (TILE_ROWS, padded keys) */
    uint16_t *weights; /* (2, TILE_ROWS, padded keys) bfloat16 */
    void *sums;        /* (TILE_ROWS, TILE_TOKENS) float32 */
};

/* Queries or keys of some tokens as rows of their own, turned by their places; the last is repeated up to a whole tile. */
TILE_TARGET static void copy_rows(const struct attention *job, const void *from, const struct piece *piece, int64_t first,
                                  int64_t count, uint16_t *to)
{
    int64_t dim = job->head_dim, half = dim / 2;
    for (int64_t r = 0; r < TILE_ROWS; r++, to += dim) {
        int64_t token = piece->begin + first + (r < count ? r : count - 1);
        const uint16_t *row = (const uint16_t *)from + token * job->stride + piece->head * dim;
        if (!job->cosines)
            memcpy(to, row, sizeof *row * dim);
        else
            for (int64_t k = 0; k < half; k += 16) {
                __m512 cosines = _mm512_loadu_ps(job->cosines + token * half + k);
                __m512 sines = _mm512_loadu_ps(job->sines + token * half + k);
                __m512 left = bfloats_at(row + k), right = bfloats_at(row + half + k);
                __m512 new_left = _mm512_fnmadd_ps(right, sines, _mm512_mul_ps(left, cosines));
                __m512 new_right = _mm512_fmadd_ps(left, sines, _mm512_mul_ps(right, cosines));
                _mm256_storeu_si256((void *)(to + k), (__m256i)_mm512_cvtneps_pbh(new_left));
                _mm256_storeu_si256((void *)(to + half + k), (__m256i)_mm512_cvtneps_pbh(new_right));
            }
    }
}

/* Lay out keys and values of a piece; zeros up to the next whole panel. */
TILE_TARGET static void lay_out_panels(const struct attention *job, struct tile_attention_room *room,
                                       const struct piece *piece)
{
    int64_t attended = piece->attended, padded = piece->padded;
    int64_t dim = job->head_dim, at = piece->begin * job->stride + piece->head * dim;
    int64_t stride = job->cosines ? dim : job->stride; /* of keys */
    const uint16_t *keys = (const uint16_t *)job->keys + at, *values = (const uint16_t *)job->values + at;
    const __m256i none = _mm256_setzero_si256();
    const __m512i order = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i places = _mm512_mullo_epi32(order, _mm512_set1_epi32((int32_t)stride)); /* of 16 tokens */
    for (int64_t token = 0; token < padded; token += 16) {
        uint32_t *panel = room->keys + token / TILE_TOKENS * TILE_TOKENS * dim / 2 + token % TILE_TOKENS;
        const uint16_t *some = keys + token * stride;
        if (job->cosines) {
            some = room->rows + token % TILE_ROWS * dim;
            if (token % TILE_ROWS == 0)
                copy_rows(job, job->keys, piece, token, attended - token, room->rows);
        }
        __mmask16 there = token + 16 <= attended ? 0xffff : token < attended ? (__mmask16)((1 << (attended - token)) - 1) : 0;
        for (int64_t pair = 0; pair < dim / 2; pair++) {
            __m512i pairs = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, places, (const void *)(some + 2 * pair), 2);
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

/* 2**x for x <= 0, to the last digit or two of float32: a whole power, and a polynomial for the rest of -0.5 to 0.5. */
TILE_TARGET static inline __m512 power_of_two(__m512 x)
{
    __m512 rest = _mm512_reduce_ps(x, 0), whole = _mm512_sub_ps(x, rest);
    __m512 y = _mm512_set1_ps(1.327647196e-3f); /* fitted for the least relative error, 8e-8 */
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(9.675541739e-3f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(5.550713277e-2f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(2.402211972e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(6.931469671e-1f));
    y = _mm512_fmadd_ps(y, rest, _mm512_set1_ps(1.000000072f));
    return _mm512_scalef_ps(y, whole);
}

/* A row of scores as weights, upper + lower, from which the softmax is one factor away: it is returned. Keys below first
 * or from stop on get none. */
TILE_TARGET static float split_softmax(float *scores, int64_t first, int64_t stop, int64_t padded_first, int64_t padded_stop,
                                       float scale, uint16_t *upper, uint16_t *lower)
{
    if (first >= stop) {
        memset(upper + padded_first, 0, sizeof *upper * (padded_stop - padded_first));
        memset(lower + padded_first, 0, sizeof *lower * (padded_stop - padded_first));
        return 0;
    }
    for (int64_t k = padded_first; k < first; k++)
        scores[k] = -INFINITY;
    for (int64_t k = stop; k < padded_stop; k++)
        scores[k] = -INFINITY;
    __m512 tops = _mm512_loadu_ps(scores + padded_first), sums = _mm512_setzero_ps();
    for (int64_t k = padded_first; k < padded_stop; k += 16)
        tops = _mm512_max_ps(_mm512_loadu_ps(scores + k), tops);
    __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(tops)), scales = _mm512_set1_ps(scale * 1.44269504f);
    const __m512i leading = _mm512_set1_epi32((int32_t)0xffff0000);
    for (int64_t k = padded_first; k < padded_stop; k += 32) {
        __m512 some = power_of_two(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + k), top), scales));
        __m512 more = power_of_two(_mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + k + 16), top), scales));
        __m512 some_near = (__m512)_mm512_and_si512((__m512i)some, leading);
        __m512 more_near = (__m512)_mm512_and_si512((__m512i)more, leading);
        __m512bh near = _mm512_cvtne2ps_pbh(more_near, some_near);
        __m512bh missing = _mm512_cvtne2ps_pbh(_mm512_sub_ps(more, more_near), _mm512_sub_ps(some, some_near));
        _mm512_storeu_si512(upper + k, (__m512i)near);
        _mm512_storeu_si512(lower + k, (__m512i)missing);
        sums = _mm512_add_ps(sums, _mm512_add_ps(some, more));
    }
    return 1.0f / _mm512_reduce_add_ps(sums);
}

/* Some queries of a piece, as attend of attention.h. */
TILE_TARGET static void attend_by_tiles(const struct attention *job, struct tile_attention_room *room,
                                        const struct piece *piece, int64_t first, int64_t count)
{
    int64_t dim = job->head_dim, padded = piece->padded, stride = job->stride, begin = piece->begin + first;
    const uint16_t *queries = (const uint16_t *)job->queries + begin * stride + piece->head * dim;
    struct range seen = keys_seen(job, piece, first, count);
    int64_t from = seen.first / TILE_TOKENS * TILE_TOKENS, to = (seen.stop + TILE_TOKENS - 1) / TILE_TOKENS * TILE_TOKENS;
    to = to < from ? from : to;
    float shares[TILE_ROWS];
    if (count < TILE_ROWS || job->cosines) {
        copy_rows(job, job->queries, piece, first, count, room->rows);
        queries = room->rows;
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
            room.rows = room.values + longest * dim;
            room.scores = (float *)(room.rows + TILE_ROWS * dim);
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

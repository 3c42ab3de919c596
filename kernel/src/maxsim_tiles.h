/* MaxSim in bfloat16 and int8 by AMX, so fast that memory is all that it waits for. Float32 stays with vectors.
 *
 * int8 has a sign on both sides here: nothing is lifted, and rows are read where they lie.
 */
/* Rows that are taken together through all panels. */
#define TILE_CHUNK 96

/* Room that a thread needs. */
struct tile_room {
    char *rows;            /* (TILE_ROWS, dim) in the form of storage, for a document with fewer */
    void *sums;            /* (TILE_ROWS, TILE_TOKENS) float32 or int32 */
    void *best;            /* (padded query tokens,) float32 or int32 */
    int32_t *not_numbers;  /* (padded query tokens,) */
};

/* The maximum of a tile, into the running ones. */
TILE_TARGET static inline void take_floats(const float *sums, float *best, int32_t *not_numbers)
{
    for (int half = 0; half < TILE_TOKENS; half += 16) {
        __m512 top = _mm512_loadu_ps(best + half), total = _mm512_setzero_ps();
        for (int r = 0; r < TILE_ROWS; r++) {
            __m512 some = _mm512_load_ps(sums + r * TILE_TOKENS + half);
            top = _mm512_max_ps(some, top);
            total = _mm512_add_ps(total, some);
        }
        _mm512_storeu_ps(best + half, top);
        /* As in maxsim.h: a maximum hides NaN, a total does not. */
        if (__builtin_expect(_mm512_cmp_ps_mask(total, total, _CMP_UNORD_Q), 0))
            for (int r = 0; r < TILE_ROWS; r++)
                for (int t = half; t < half + 16; t++)
                    not_numbers[t] |= sums[r * TILE_TOKENS + t] != sums[r * TILE_TOKENS + t];
    }
}

TILE_TARGET static inline void take_ints(const int32_t *sums, int32_t *best)
{
    for (int half = 0; half < TILE_TOKENS; half += 16) {
        __m512i top = _mm512_loadu_si512(best + half);
        for (int r = 0; r < TILE_ROWS; r++)
            top = _mm512_max_epi32(_mm512_load_si512(sums + r * TILE_TOKENS + half), top);
        _mm512_storeu_si512(best + half, top);
    }
}

/* Some rows of a document through all panels; those before them too where they are fewer than a tile. */
TILE_TARGET static void chunk_by_tiles(const struct maxsim *job, struct tile_room *room, const char *rows, int64_t count,
                                       int64_t row_bytes, int64_t panels, struct ahead ahead)
{
    int64_t step = tile_step(row_bytes);
    int in_int8 = job->arithmetic == IN_INT8;
    for (int64_t p = 0; p < panels; p++) {
        const char *panel = (const char *)job->packed + p * TILE_TOKENS * row_bytes;
        for (int64_t start = 0; start < count; start += TILE_ROWS) {
            int64_t row = start + TILE_ROWS <= count ? start : count - TILE_ROWS; /* the last tile is moved back */
            clear_tile();
            add_to_tile(rows + row * row_bytes, row_bytes, row_bytes, step, panel, row_ahead(&ahead, start), in_int8);
            store_tile(room->sums, 4 * TILE_TOKENS);
            if (in_int8)
                take_ints(room->sums, (int32_t *)room->best + p * TILE_TOKENS);
            else
                take_floats(room->sums, (float *)room->best + p * TILE_TOKENS, room->not_numbers + p * TILE_TOKENS);
        }
    }
}

TILE_TARGET static void document_by_tiles(const struct maxsim *job, struct tile_room *room, int64_t document, int64_t panels)
{
    int64_t row_bytes = job->dim * bytes_in(job->storage);
    struct ahead ahead = document_rows(job, document);
    begin(job, panels * TILE_TOKENS, room->best, room->not_numbers);
    if (ahead.length && ahead.length < TILE_ROWS) {
        for (int64_t r = 0; r < TILE_ROWS; r++)
            memcpy(room->rows + r * row_bytes, ahead.rows + (r < ahead.length ? r : ahead.length - 1) * row_bytes, row_bytes);
        ahead.row = 2 * TILE_ROWS;
        chunk_by_tiles(job, room, room->rows, TILE_ROWS, row_bytes, panels, ahead);
    } else {
        for (int64_t start = 0; start < ahead.length; start += TILE_CHUNK) {
            int64_t count = ahead.length - start < TILE_CHUNK ? ahead.length - start : TILE_CHUNK;
            ahead.row = start + 2 * TILE_ROWS;
            chunk_by_tiles(job, room, ahead.rows + start * row_bytes, count, row_bytes, panels, ahead);
        }
    }
    finish(job, document, ahead.length, room->best, room->not_numbers, 0);
}

TILE_TARGET static int score_amx(const struct maxsim *job, int32_t threads)
{
    int64_t tokens = job->query_bounds[job->queries], panels = (tokens + TILE_TOKENS - 1) / TILE_TOKENS;
    int64_t row_bytes = job->dim * bytes_in(job->storage), step = tile_step(row_bytes);
    int failed = 0;
    if (job->arithmetic == IN_FLOAT32 || !step)
        return score_avx512_dot(job, threads);
#pragma omp parallel num_threads(threads)
    {
        int64_t sums = 4 * TILE_ROWS * TILE_TOKENS, rows = (TILE_ROWS * row_bytes + 63) / 64 * 64;
        char *all = aligned_alloc(64, sums + rows + 2 * 4 * panels * TILE_TOKENS);
        struct tile_room room = {all + sums, all, all + sums + rows, NULL};
        if (all) {
            room.not_numbers = (int32_t *)room.best + panels * TILE_TOKENS;
            shape_tiles(step);
        } else {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 8)
        for (int64_t document = 0; document < job->documents; document++)
            if (all)
                document_by_tiles(job, &room, document, panels);
        if (all)
            _tile_release();
        free(all);
    }
    return failed;
}

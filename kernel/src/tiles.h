/* MaxSim in bfloat16 and int8 by AMX, whose instructions multiply whole tiles of a matrix: up to eight times as fast as
 * vectors do, so that memory is all that it waits for. Float32 stays with vectors.
 *
 * A tile of 32 rows against a panel of 32 query tokens is four tiles of the CPU, 16 x 16 sums each; a step of coordinates
 * takes two tiles of rows, as they lie in memory, and two of tokens. int8 has a sign on both sides here: nothing is lifted.
 */
#define TILE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-bf16,amx-int8")))
#define TILE_ROWS 32
#define TILE_TOKENS 32
/* Rows that are taken together through all panels. */
#define TILE_CHUNK 96

/* Room that a thread needs. */
struct tile_room {
    char *rows;            /* (TILE_ROWS, dim) in the form of storage, for a document with fewer */
    void *sums;            /* (TILE_ROWS, TILE_TOKENS) float32 or int32 */
    void *best;            /* (padded query tokens,) float32 or int32 */
    int32_t *not_numbers;  /* (padded query tokens,) */
};

/* The widest step of a row, in bytes, that a tile can take: 64, 32 or 16; 0 if there is none. */
static int64_t tile_step(int64_t row_bytes)
{
    return row_bytes % 64 == 0 ? 64 : row_bytes % 32 == 0 ? 32 : row_bytes % 16 == 0 ? 16 : 0;
}

/* Tell the CPU, thread by thread, what each of its eight tiles is: four of sums, two of rows, two of tokens. */
TILE_TARGET static void shape_tiles(int64_t step)
{
    struct {
        uint8_t palette, start, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        shape.bytes[t] = t == 4 || t == 5 ? (uint16_t)step : 64;
        shape.rows[t] = t < 6 ? 16 : (uint8_t)(step / 4);
    }
    _tile_loadconfig(&shape);
}

/* sums += rows panel^T for one step of all rows and tokens. The tiles are numbers in the instructions, hence the macro. */
#define ADD_STEP(multiply) \
    do { \
        _tile_loadd(4, row, row_bytes); \
        _tile_loadd(6, tokens, 4 * TILE_TOKENS); \
        multiply(0, 4, 6); \
        _tile_loadd(7, tokens + 64, 4 * TILE_TOKENS); \
        multiply(1, 4, 7); \
        _tile_loadd(5, row + 16 * row_bytes, row_bytes); \
        multiply(2, 5, 6); \
        multiply(3, 5, 7); \
    } while (0)

TILE_TARGET static inline void multiply_tile(const char *rows, int64_t row_bytes, int64_t step, const char *panel,
                                             const char *ahead, int in_int8, char *sums)
{
    __asm__ volatile("" ::: "memory"); /* GCC's loads of tiles don't say that they read memory */
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < row_bytes; k += step) {
        const char *row = rows + k, *tokens = panel + k * TILE_TOKENS;
        if (in_int8)
            ADD_STEP(_tile_dpbssd);
        else
            ADD_STEP(_tile_dpbf16ps);
        for (int64_t byte = 0; byte < TILE_ROWS * step; byte += 64, ahead += 64)
            __builtin_prefetch(ahead, 0, 2); /* two tiles ahead, into the second-level cache: two thirds of the time */
    }
    _tile_stored(0, sums, 4 * TILE_TOKENS);
    _tile_stored(1, sums + 64, 4 * TILE_TOKENS);
    _tile_stored(2, sums + 16 * 4 * TILE_TOKENS, 4 * TILE_TOKENS);
    _tile_stored(3, sums + 16 * 4 * TILE_TOKENS + 64, 4 * TILE_TOKENS);
}

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
TILE_TARGET static void chunk_by_tiles(const struct job *job, struct tile_room *room, const char *rows, int64_t count,
                                       int64_t row_bytes, int64_t panels, struct ahead ahead)
{
    int64_t step = tile_step(row_bytes);
    for (int64_t p = 0; p < panels; p++) {
        const char *panel = (const char *)job->packed + p * TILE_TOKENS * row_bytes;
        for (int64_t start = 0; start < count; start += TILE_ROWS) {
            int64_t row = start + TILE_ROWS <= count ? start : count - TILE_ROWS; /* the last tile is moved back */
            multiply_tile(rows + row * row_bytes, row_bytes, step, panel, row_ahead(&ahead, start),
                          job->arithmetic == IN_INT8, room->sums);
            if (job->arithmetic == IN_INT8)
                take_ints(room->sums, (int32_t *)room->best + p * TILE_TOKENS);
            else
                take_floats(room->sums, (float *)room->best + p * TILE_TOKENS, room->not_numbers + p * TILE_TOKENS);
        }
    }
}

TILE_TARGET static void document_by_tiles(const struct job *job, struct tile_room *room, int64_t document, int64_t panels)
{
    int64_t row_bytes = job->dim * bytes_in(job->storage);
    struct ahead ahead = document_rows(job, document);
    for (int64_t t = 0; t < panels * TILE_TOKENS; t++) {
        if (job->arithmetic == IN_INT8)
            ((int32_t *)room->best)[t] = INT32_MIN;
        else
            ((float *)room->best)[t] = -INFINITY;
        room->not_numbers[t] = 0;
    }
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

TILE_TARGET static int score_amx(const struct job *job, int32_t threads)
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

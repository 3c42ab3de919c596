/* MaxSim, included once for each instruction set.
 *
 * A panel is TOKENS query tokens side by side, coordinate after coordinate, so that one coordinate of all of them is
 * loaded as a few vectors. A tile is ROWS rows of a document against a panel: ROWS x WIDTH vectors of products, which
 * stay in registers from the first coordinate to the last. What is left of a tile is one running maximum per token.
 *
 * A document's end needs no mask: its last tile is moved back to overlap the one before, since a maximum may see a row
 * twice. A document with fewer rows than a tile repeats its last row.
 */
/* The maximum of a tile, into the running ones. These stay in memory: in registers they would crowd out the tile's own. */
TARGET static inline void NAME(take)(FLOATS sums[ROWS][WIDTH], float *best, int32_t *not_numbers)
{
    for (int w = 0; w < WIDTH; w++) {
        FLOATS top = FLOATS_AT(best + w * LANES), total = sums[0][w];
        top = LARGER(sums[0][w], top);
#pragma GCC unroll 16
        for (int r = 1; r < ROWS; r++) {
            top = LARGER(sums[r][w], top);
            total += sums[r][w];
        }
        FLOATS_AT(best + w * LANES) = top;
        /* A maximum hides NaN. A total does not, though it may also come from infinities: then look closely. */
        if (__builtin_expect(ANY_NAN(total), 0))
            for (int r = 0; r < ROWS; r++)
                INTS_AT(not_numbers + w * LANES) |= sums[r][w] != sums[r][w];
    }
}

/* Where a tile begins: the last one of a document overlaps the one before. */
#define TILE_START(start, count) ((start) + ROWS <= (count) ? (start) : (count) - ROWS)

TARGET static inline void NAME(best_floats)(const float *rows, int64_t count, int64_t dim, const float *panel,
                                            struct ahead ahead, float *best, int32_t *not_numbers)
{
    for (int64_t start = 0; start < count; start += ROWS) {
        FLOATS sums[ROWS][WIDTH];
        NAME(multiply)(rows + TILE_START(start, count) * dim, dim, dim, panel, row_ahead(&ahead, start),
                       ROWS * ahead.row_bytes / dim, sums);
        NAME(take)(sums, best, not_numbers);
    }
}

#if HAS_BFLOAT16
TARGET static inline void NAME(best_bfloats)(const uint16_t *rows, int64_t count, int64_t dim, const uint16_t *panel,
                                             struct ahead ahead, float *best, int32_t *not_numbers)
{
    for (int64_t start = 0; start < count; start += ROWS) {
        FLOATS sums[ROWS][WIDTH];
        NAME(multiply_bfloats)(rows + TILE_START(start, count) * dim, dim, panel, row_ahead(&ahead, start), sums);
        NAME(take)(sums, best, not_numbers);
    }
}
#endif

#if HAS_INT8
TARGET static inline void NAME(best_codes)(const CODE *rows, int64_t count, int64_t dim, const TOKEN_CODE *panel,
                                           struct ahead ahead, int32_t *best)
{
    for (int64_t start = 0; start < count; start += ROWS) {
        INTS sums[ROWS][WIDTH];
        NAME(multiply_codes)(rows + TILE_START(start, count) * dim, dim, panel, row_ahead(&ahead, start), sums);
        for (int w = 0; w < WIDTH; w++) {
            INTS top = INTS_AT(best + w * LANES);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; r++)
                top = LARGER_INTS(sums[r][w], top);
            INTS_AT(best + w * LANES) = top;
        }
    }
}
#endif

/* ------------------------------------------------------------------------------------------- rows as they are needed */

/* Copy rows as float32, scaled; the last one again and again where there are fewer than a tile. */
TARGET static void NAME(as_floats)(const struct maxsim *job, const void *rows, const float *scales, int64_t count,
                                   int64_t filled, float *out)
{
    int64_t dim = job->dim;
    for (int64_t r = 0; r < filled; r++) {
        int64_t from = r < count ? r : count - 1;
        float scale = scales ? scales[from] : 1.0f, *to = out + r * dim;
        if (job->storage == BITS4 || job->storage == BITS2) {
            int64_t row_bytes = row_bytes_of(job);
            const uint8_t *row = (const uint8_t *)rows + from * row_bytes;
            uint16_t half; /* at any byte */
            memcpy(&half, row + row_bytes - sizeof half, sizeof half);
            scale *= half_as_float(half);
            if (job->storage == BITS4) /* said as a number, so that there is a loop for each */
                NAME(codes_as_floats)(row, dim, 4, job->levels, scale, to);
            else
                NAME(codes_as_floats)(row, dim, 2, job->levels, scale, to);
        } else if (job->storage == FLOAT32) {
            const float *row = (const float *)rows + from * dim;
            for (int64_t k = 0; k < dim; k++)
                to[k] = row[k] * scale;
        } else if (job->storage == FLOAT16) {
            NAME(halves_as_floats)((const uint16_t *)rows + from * dim, dim, scale, to);
        } else if (job->storage == BFLOAT16) {
            NAME(bfloats_as_floats)((const uint16_t *)rows + from * dim, dim, scale, to);
        } else {
            const int8_t *row = (const int8_t *)rows + from * dim;
            for (int64_t k = 0; k < dim; k++)
                to[k] = (float)row[k] * scale;
        }
    }
}

#if HAS_INT8
TARGET static void NAME(lifted)(const int8_t *restrict rows, int64_t count, int64_t filled, int64_t dim, CODE *restrict out)
{
    for (int64_t r = 0; r < filled; r++) {
        const int8_t *row = rows + (r < count ? r : count - 1) * dim;
        for (int64_t k = 0; k < dim; k++)
            out[r * dim + k] = (CODE)(row[k] + LIFT);
    }
}
#endif

#if HAS_BFLOAT16
TARGET static void NAME(repeated)(const uint16_t *rows, int64_t count, int64_t filled, int64_t dim, uint16_t *out)
{
    for (int64_t r = 0; r < filled; r++)
        memcpy(out + r * dim, rows + (r < count ? r : count - 1) * dim, sizeof *out * dim);
}
#endif

/* ---------------------------------------------------------------------------------------------------- documents */

/* Room that a thread needs. */
struct NAME(room) {
    void *rows;            /* (CHUNK, dim) float32, or as many values of a smaller form */
    float *best;           /* (padded query tokens,) float32, or int32 */
    int32_t *not_numbers;  /* (padded query tokens,) */
};

/* Some rows of a document through all panels. */
TARGET static void NAME(chunk)(const struct maxsim *job, struct NAME(room) *room, const void *rows, const float *scales,
                               int64_t count, int64_t panels, struct ahead ahead)
{
    int64_t dim = job->dim, filled = count < ROWS ? ROWS : count;
#if HAS_BFLOAT16
    if (job->arithmetic == IN_BFLOAT16) {
        if (filled > count) {
            NAME(repeated)(rows, count, filled, dim, room->rows);
            rows = room->rows;
        }
        for (int64_t p = 0; p < panels; p++)
            NAME(best_bfloats)(rows, filled, dim, (const uint16_t *)job->packed + p * TOKENS * dim, ahead,
                               room->best + p * TOKENS, room->not_numbers + p * TOKENS);
        return;
    }
#endif
#if HAS_INT8
    if (job->arithmetic == IN_INT8) {
        NAME(lifted)(rows, count, filled, dim, room->rows);
        for (int64_t p = 0; p < panels; p++)
            NAME(best_codes)(room->rows, filled, dim, (const TOKEN_CODE *)job->packed + p * TOKENS * dim, ahead,
                             (int32_t *)room->best + p * TOKENS);
        return;
    }
#endif
    if (job->storage != FLOAT32 || scales || filled > count) {
        NAME(as_floats)(job, rows, scales, count, filled, room->rows);
        rows = room->rows;
    }
    for (int64_t p = 0; p < panels; p++)
        NAME(best_floats)(rows, filled, dim, (const float *)job->packed + p * TOKENS * dim, ahead,
                          room->best + p * TOKENS, room->not_numbers + p * TOKENS);
}

TARGET static void NAME(document)(const struct maxsim *job, struct NAME(room) *room, int64_t document, int64_t panels)
{
    struct ahead ahead = document_rows(job, document);
    int64_t length = ahead.length;
    begin(job, panels * TOKENS, room->best, room->not_numbers);
    /* What is converted first is taken in smaller bites, so that it stays in the first-level cache until it is used. */
    int converted = job->storage != FLOAT32 && job->arithmetic == IN_FLOAT32;
    int64_t bite = converted ? 2 * ROWS : CHUNK;
    /* Copied rows are needed a bite earlier. */
    int64_t distance = 2 * ROWS + (converted || job->arithmetic == IN_INT8 ? bite : 0);
    for (int64_t start = 0; start < length; start += bite) {
        int64_t count = length - start < bite ? length - start : bite;
        int64_t first = count < ROWS && start ? start - (ROWS - count) : start; /* see rows twice rather than fill up */
        ahead.row = first + distance;
        NAME(chunk)(job, room, ahead.rows + first * ahead.row_bytes,
                    job->row_scales ? job->row_scales + job->bounds[document] + first : NULL, start + count - first, panels,
                    ahead);
    }
    #if HAS_INT8
    int32_t lift = LIFT;
#else
    int32_t lift = 0;
#endif
    finish(job, document, length, room->best, room->not_numbers, lift);
}

TARGET static int NAME(score)(const struct maxsim *job, int32_t threads)
{
    int64_t tokens = job->query_bounds[job->queries], panels = (tokens + TOKENS - 1) / TOKENS;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        struct NAME(room) room = {
            malloc(sizeof(float) * CHUNK * (job->dim + 1)),
            malloc(sizeof(float) * (panels * TOKENS + 1)),
            malloc(sizeof(int32_t) * (panels * TOKENS + 1)),
        };
        int whole = room.rows && room.best && room.not_numbers;
        if (!whole) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp for schedule(dynamic, 8)
        for (int64_t document = 0; document < job->documents; document++)
            if (whole)
                NAME(document)(job, &room, document, panels);
        free(room.rows);
        free(room.best);
        free(room.not_numbers);
    }
    return failed;
}


/* A linear layer in int8, included once for each instruction set that multiplies in it.
 *
 * Weights are rounded with one step for each output, inputs with one step for each token: a token's own largest number
 * decides how finely it is rounded, so that no token pays for another one's outlier.
 */
#if HAS_INT8

/* Round a token to codes; what one step is worth. */
TARGET static float NAME(rounded)(const float *x, int64_t count, int64_t padded, CODE *out)
{
    FLOATS tops = {0}, total = {0};
    int64_t k = 0;
    for (; k + LANES <= count; k += LANES) {
        FLOATS some = FLOATS_AT(x + k);
        tops = LARGER((FLOATS)((INTS)some & 0x7fffffff), tops);
        total += some;
    }
    float top = 0, rest = 0;
    for (int lane = 0; lane < LANES; lane++)
        top = tops[lane] > top ? tops[lane] : top;
    for (; k < count; k++) {
        top = fabsf(x[k]) > top ? fabsf(x[k]) : top;
        rest += x[k];
    }
    float scale = top > 1e-35f ? 127.0f / top : 0.0f; /* less would overflow, and is nothing beside any bias */
    for (k = 0; k + LANES <= count; k += LANES)
        NAME(floats_as_codes)(x + k, scale, out + k);
    for (; k < padded; k++)
        out[k] = (CODE)((k < count ? (int)lrintf(x[k] * scale) : 0) + LIFT);
    return ANY_NAN(total) || rest != rest ? NAN : top / 127.0f; /* codes can't say NaN, a step can */
}

/* One token's products by some weights, as numbers. */
TARGET static inline void NAME(unrounded)(const struct linear *job, INTS products, float row_step, int64_t column, float *out)
{
    if (job->outputs - column >= LANES) {
        FLOATS steps = FLOATS_AT(job->steps + column) * row_step, bias = {0};
        if (job->bias)
            bias = FLOATS_AT(job->bias + column);
        products -= INTS_AT(job->sums + column) * LIFT;
        FLOATS_AT(out) = __builtin_convertvector(products, FLOATS) * steps + bias;
        return;
    }
    for (int64_t lane = 0; lane < job->outputs - column; lane++) {
        float product = (float)(products[lane] - job->sums[column + lane] * LIFT);
        out[lane] = product * (job->steps[column + lane] * row_step) + (job->bias ? job->bias[column + lane] : 0.0f);
    }
}

/* Some tokens against one panel of weights. */
TARGET static void NAME(outputs)(const struct linear *job, const CODE *rows, const float *row_steps, int64_t padded,
                                 int64_t first, int64_t count, int64_t panel)
{
    const TOKEN_CODE *weights = (const TOKEN_CODE *)job->packed + panel * TOKENS * padded;
    int64_t column = panel * TOKENS, last = first + count;
    for (int64_t start = first; start < last; start += ROWS) {
        int64_t row = start + ROWS <= last || last < ROWS ? start : last - ROWS;
        INTS sums[ROWS][WIDTH];
        NAME(multiply_codes)(rows + row * padded, padded, weights, NULL, sums);
        for (int64_t r = 0; r < ROWS && row + r < last; r++)
            for (int64_t w = 0, at = column; w < WIDTH && at < job->outputs; w++, at += LANES)
                NAME(unrounded)(job, sums[r][w], row_steps[row + r], at, job->out + (row + r) * job->outputs + at);
    }
}

TARGET static int NAME(linear)(const struct linear *job, int32_t threads)
{
    int64_t padded = (job->inputs + 3) / 4 * 4, panels = (job->outputs + TOKENS - 1) / TOKENS;
    int64_t chunks = (job->rows + CHUNK - 1) / CHUNK, filled = job->rows < ROWS ? ROWS : job->rows;
    CODE *rows = calloc(filled * padded + 1, sizeof *rows);
    float *row_steps = malloc(sizeof(float) * (filled + 1));
    int failed = !rows || !row_steps;
    if (!failed) {
#pragma omp parallel num_threads(threads)
        {
#pragma omp for schedule(static)
            for (int64_t r = 0; r < job->rows; r++)
                row_steps[r] = NAME(rounded)(job->x + r * job->inputs, job->inputs, padded, rows + r * padded);
#pragma omp for collapse(2) schedule(static)
            for (int64_t chunk = 0; chunk < chunks; chunk++)
                for (int64_t panel = 0; panel < panels; panel++) {
                    int64_t first = chunk * CHUNK, rest = job->rows - first;
                    NAME(outputs)(job, rows, row_steps, padded, first, rest < CHUNK ? rest : CHUNK, panel);
                }
        }
    }
    free(rows);
    free(row_steps);
    return failed;
}

#endif

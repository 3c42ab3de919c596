/* A linear layer and what follows it, included once for each instruction set.
 *
 * In float32, or in int8: then weights are rounded with one step for each output, inputs with one step for each token. A
 * token's own largest number decides how finely it is rounded, so that no token pays for another one's outlier.
 *
 * A token's products are added up in the same order whoever shares its batch, so its outputs are the same to the last bit.
 */

/* ------------------------------------------------------------------------------------------------ what follows */

TARGET static inline FLOATS NAME(size_of)(FLOATS x)
{
    return (FLOATS)((INTS)x & 0x7fffffff);
}

TARGET static inline FLOATS NAME(chosen)(INTS first, FLOATS a, FLOATS b)
{
    return (FLOATS)(((INTS)a & first) | ((INTS)b & ~first));
}

/* x times the share of a normal distribution below x. The share beyond |x| is exp(-x^2 / 2) times a polynomial of
 * 1 / (1 + c |x|), fitted so that the largest error of gelu was least: 6e-9, less than float32 rounds. */
TARGET static inline FLOATS NAME(gelu)(FLOATS x)
{
    FLOATS t = 1.0f / (1.0f + 0.28284271f * NAME(size_of)(x));
    FLOATS beyond = t * -0.10288260f + 0.36572763f;
    beyond = beyond * t + -0.20341323f;
    beyond = beyond * t + 0.24849832f;
    beyond = beyond * t + 0.07520962f;
    beyond = beyond * t + 0.11686018f;
    beyond *= t * NAME(exponential)(-0.5f * x * x);
    return x * NAME(chosen)(x < 0.0f, beyond, 1.0f - beyond);
}

/* The same by tanh: x / (1 + exp(-y)), where y is twice the tangent's argument. */
TARGET static inline FLOATS NAME(gelu_tanh)(FLOATS x)
{
    FLOATS y = 1.5957691f * x * (1.0f + 0.044715f * x * x), power = NAME(exponential)(-NAME(size_of)(y));
    return x * NAME(chosen)(y < 0.0f, power, (FLOATS){0} + 1.0f) / (1.0f + power);
}

TARGET static inline FLOATS NAME(activated)(int32_t activation, FLOATS x)
{
    return activation == GELU ? NAME(gelu)(x)
           : activation == GELU_TANH ? NAME(gelu_tanh)(x)
           : activation == RELU ? (FLOATS)((INTS)x & ~(INTS)(x < 0.0f)) /* a NaN stays one */
                                : x;
}

/* Some sums of a token, to what comes out of them. */
TARGET static inline void NAME(give)(const struct linear *job, FLOATS sums, int64_t row, int64_t column)
{
    int64_t at = row * job->outputs + column, left = job->outputs - column;
    if (job->bias)
        sums += FLOATS_AT(job->bias + column);
    sums = NAME(activated)(job->activation, sums);
    if (left >= LANES) {
        FLOATS_AT(job->out + at) = job->factors ? sums * FLOATS_AT(job->factors + at) : sums;
        return;
    }
    for (int64_t lane = 0; lane < left; lane++)
        job->out[at + lane] = job->factors ? sums[lane] * job->factors[at + lane] : sums[lane];
}

/* ------------------------------------------------------------------------------------------------------ float32 */

/* Inputs that are multiplied at once: so much of a panel, 24 kB, stays in a first-level cache. 5 to 18% faster. */
#define DEPTH (6144 / TOKENS)
/* How many inputs ahead weights are asked for. A short query waits for its weights more than it multiplies: saves 14%. */
#define LEAD 64

/* Some tokens against one panel of weights. */
TARGET static void NAME(float_outputs)(const struct linear *job, const float *rows, int64_t first, int64_t count, int64_t panel)
{
    const float *weights = (const float *)job->packed + panel * TOKENS * job->inputs;
    int64_t column = panel * TOKENS, last = first + count;
    float totals[CHUNK][TOKENS];
    memset(totals, 0, sizeof *totals * count);
    for (int64_t k = 0; k < job->inputs; k += DEPTH)
        for (int64_t start = first; start < last; start += ROWS) {
            /* The last tile is moved back; what it sees twice counts once. */
            int64_t row = start + ROWS <= last || last < ROWS ? start : last - ROWS;
            int64_t depth = job->inputs - k < DEPTH ? job->inputs - k : DEPTH;
            const char *ahead = start == first ? (const char *)(weights + (k + LEAD) * TOKENS) : NULL;
            FLOATS sums[ROWS][WIDTH];
            NAME(multiply)(rows + row * job->inputs + k, job->inputs, depth, weights + k * TOKENS, ahead, 4 * TOKENS, sums);
            for (int64_t r = start - row; r < ROWS && row + r < last; r++)
                for (int64_t w = 0; w < WIDTH; w++)
                    FLOATS_AT(totals[row + r - first] + w * LANES) += sums[r][w];
        }
    for (int64_t r = 0; r < count; r++)
        for (int64_t w = 0; w < WIDTH; w++)
            NAME(give)(job, FLOATS_AT(totals[r] + w * LANES), first + r, column + w * LANES);
}

/* Fewer tokens than a tile has rows are followed by zeros. */
TARGET static int NAME(linear_floats)(const struct linear *job, int32_t threads)
{
    int64_t panels = (job->outputs + TOKENS - 1) / TOKENS, chunks = (job->rows + CHUNK - 1) / CHUNK;
    float *filled = NULL;
    if (job->rows && job->rows < ROWS) {
        filled = calloc(ROWS * job->inputs + 1, sizeof *filled);
        if (!filled)
            return 1;
        memcpy(filled, job->x, sizeof *filled * job->rows * job->inputs);
    }
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; chunk++)
        for (int64_t panel = 0; panel < panels; panel++) {
            int64_t first = chunk * CHUNK, rest = job->rows - first;
            NAME(float_outputs)(job, filled ? filled : job->x, first, rest < CHUNK ? rest : CHUNK, panel);
        }
    free(filled);
    return 0;
}

/* --------------------------------------------------------------------------------------------------------- int8 */

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
    /* Codes can't say NaN or infinite, a step can. */
    return ANY_NAN(total) || rest != rest || top == INFINITY ? NAN : top / 127.0f;
}

/* Some tokens against one panel of weights. */
TARGET static void NAME(code_outputs)(const struct linear *job, const CODE *rows, const float *row_steps, int64_t padded,
                                      int64_t first, int64_t count, int64_t panel)
{
    const TOKEN_CODE *weights = (const TOKEN_CODE *)job->packed + panel * TOKENS * padded;
    int64_t last = first + count;
    for (int64_t start = first; start < last; start += ROWS) {
        int64_t row = start + ROWS <= last || last < ROWS ? start : last - ROWS;
        INTS sums[ROWS][WIDTH];
        NAME(multiply_codes)(rows + row * padded, padded, weights, NULL, sums);
        for (int64_t r = start - row; r < ROWS && row + r < last; r++)
            for (int64_t w = 0; w < WIDTH; w++) {
                int64_t column = panel * TOKENS + w * LANES;
                INTS products = sums[r][w] - INTS_AT(job->sums + column) * LIFT;
                FLOATS steps = FLOATS_AT(job->steps + column) * row_steps[row + r];
                NAME(give)(job, __builtin_convertvector(products, FLOATS) * steps, row + r, column);
            }
    }
}

TARGET static int NAME(linear_codes)(const struct linear *job, int32_t threads)
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
                    NAME(code_outputs)(job, rows, row_steps, padded, first, rest < CHUNK ? rest : CHUNK, panel);
                }
        }
    }
    free(rows);
    free(row_steps);
    return failed;
}
#endif

TARGET static int NAME(linear)(const struct linear *job, int32_t threads)
{
#if HAS_INT8
    if (job->arithmetic == IN_INT8)
        return NAME(linear_codes)(job, threads);
#endif
    return NAME(linear_floats)(job, threads);
}

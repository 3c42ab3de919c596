/* A linear layer in int8, included once for each instruction set that multiplies in it.
 *
 * Weights are rounded with one step for each output, inputs with one step for each token: a token's own largest number
 * decides how finely it is rounded, so that no token pays for another one's outlier.
 */
#if HAS_INT8

/* Round a token to int8, lifted by 128; what one step is worth. */
TARGET static float NAME(rounded)(const float *x, int64_t count, int64_t padded, uint8_t *out)
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
    for (k = 0; k + LANES <= count; k += LANES) {
        __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + k), _mm512_set1_ps(scale)));
        _mm_storeu_si128((void *)(out + k), _mm_xor_si128(_mm512_cvtepi32_epi8(whole), _mm_set1_epi8((char)0x80)));
    }
    for (; k < padded; k++)
        out[k] = (uint8_t)((k < count ? (int)lrintf(x[k] * scale) : 0) + 128);
    return ANY_NAN(total) || rest != rest ? NAN : top / 127.0f; /* codes can't say NaN, a step can */
}

/* Some tokens against one panel of weights. */
TARGET static void NAME(outputs)(const struct linear *job, const uint8_t *rows, const float *row_steps, int64_t padded,
                                 int64_t first, int64_t count, int64_t panel)
{
    const int8_t *weights = (const int8_t *)job->packed + panel * TOKENS * padded;
    int64_t column = panel * TOKENS, columns = job->outputs - column < TOKENS ? job->outputs - column : TOKENS;
    int64_t last = first + count;
    for (int64_t start = first; start < last; start += ROWS) {
        int64_t row = start + ROWS <= last || last < ROWS ? start : last - ROWS;
        INTS sums[ROWS][WIDTH];
        NAME(multiply_bytes)(rows + row * padded, padded, weights, NULL, sums);
        for (int64_t r = 0; r < ROWS && row + r < last; r++)
            for (int w = 0; w < WIDTH; w++) {
                int64_t at = column + w * LANES, rest = column + columns - at;
                if (rest <= 0)
                    continue;
                __mmask16 some = rest >= LANES ? 0xffff : (__mmask16)((1u << rest) - 1);
                __m512i lift = _mm512_slli_epi32(_mm512_maskz_loadu_epi32(some, job->sums + at), 7); /* 128 * sum */
                __m512 steps = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, job->steps + at), _mm512_set1_ps(row_steps[row + r]));
                __m512 bias = job->bias ? _mm512_maskz_loadu_ps(some, job->bias + at) : _mm512_setzero_ps();
                __m512 value = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32((__m512i)sums[r][w], lift)), steps, bias);
                _mm512_mask_storeu_ps(job->out + (row + r) * job->outputs + at, some, value);
            }
    }
}

TARGET static int NAME(linear)(const struct linear *job, int32_t threads)
{
    int64_t padded = (job->inputs + 3) / 4 * 4, panels = (job->outputs + TOKENS - 1) / TOKENS;
    int64_t chunks = (job->rows + CHUNK - 1) / CHUNK, filled = job->rows < ROWS ? ROWS : job->rows;
    uint8_t *rows = calloc(filled * padded + 1, 1);
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

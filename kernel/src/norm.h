/* LayerNorm of a sum, included once for each instruction set: what comes in is read once, what goes out written once. */

/* Numbers of a row that are written at a time. */
#define PART 128

TARGET static inline float NAME(sum_of)(FLOATS lanes)
{
    float sums[LANES];
    memcpy(sums, &lanes, sizeof sums);
    for (int width = LANES / 2; width; width /= 2) /* by halves: one after another would wait for each */
        for (int lane = 0; lane < width; lane++)
            sums[lane] += sums[lane + width];
    return sums[0];
}

/* Add left and right; their mean. */
TARGET static inline float NAME(add)(const struct norm *job, int64_t at, float *restrict sums)
{
    int64_t width = job->width, k = 0;
    if (job->storage == BFLOAT16)
        NAME(bfloats_as_floats)((const uint16_t *)job->left + at, width, 1.0f, sums);
    else
        memcpy(sums, (const float *)job->left + at, sizeof(float) * width);
    if (job->right) {
        const float *restrict right = job->right + at;
        for (k = 0; k < width; k++)
            sums[k] += right[k];
    }
    FLOATS even = {0}, odd = {0};
    for (k = 0; k + 2 * LANES <= width; k += 2 * LANES) {
        even += FLOATS_AT(sums + k);
        odd += FLOATS_AT(sums + k + LANES);
    }
    float sum = NAME(sum_of)(even + odd);
    for (; k < width; k++)
        sum += sums[k];
    return sum / width;
}

TARGET static inline float NAME(variance)(const float *row, int64_t width, float mean)
{
    FLOATS even = {0}, odd = {0};
    int64_t k = 0;
    for (; k + 2 * LANES <= width; k += 2 * LANES) {
        FLOATS left = FLOATS_AT(row + k) - mean, right = FLOATS_AT(row + k + LANES) - mean;
        even += left * left;
        odd += right * right;
    }
    float sum = NAME(sum_of)(even + odd);
    for (; k < width; k++)
        sum += (row[k] - mean) * (row[k] - mean);
    return sum / width;
}

TARGET static inline void NAME(scaled)(const float *restrict row, int64_t count, float mean, float share,
                                       const float *restrict weight, const float *restrict bias, float *restrict to)
{
    if (bias)
        for (int64_t k = 0; k < count; k++)
            to[k] = (row[k] - mean) * share * weight[k] + bias[k];
    else
        for (int64_t k = 0; k < count; k++)
            to[k] = (row[k] - mean) * share * weight[k];
}

/* One row; sums is where the sum may stand: in total, or in normed until it is normalised. */
TARGET static inline void NAME(normalise)(const struct norm *job, int64_t at, float *sums)
{
    float mean = NAME(add)(job, at, sums), share = 1.0f / sqrtf(NAME(variance)(sums, job->width, mean) + job->eps);
    for (int64_t first = 0; first < job->width; first += PART) {
        float part[PART]; /* lest what is written may be what is read, for all that the compiler knows */
        int64_t count = job->width - first < PART ? job->width - first : PART;
        NAME(scaled)(sums + first, count, mean, share, job->weight + first, job->bias ? job->bias + first : NULL, part);
        if (job->normed)
            memcpy(job->normed + at + first, part, sizeof(float) * count);
        if (job->rounded)
            NAME(floats_as_bfloats)(part, count, (uint16_t *)job->rounded + at + first);
    }
}

TARGET static int NAME(norm)(const struct norm *job, int32_t threads)
{
    float *sums = job->total ? job->total : job->normed;
    /* Waking threads for a short query takes longer than its rows. */
#pragma omp parallel for schedule(static) num_threads(job->rows * job->width < 32768 ? 1 : threads)
    for (int64_t row = 0; row < job->rows; row++)
        NAME(normalise)(job, row * job->width, sums + row * job->width);
    return 0;
}

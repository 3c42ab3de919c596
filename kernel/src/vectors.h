/* Vectors of one instruction set, and the product of a tile; included once for each.
 *
 * Expects: NAME(x), TARGET, LANES, ROWS, LARGER(a, b), ANY_NAN(v), NAME(halves_as_floats); HAS_BFLOAT16 and HAS_INT8
 * where the instruction set multiplies in these. undefine.h ends what begins here.
 */
#define WIDTH 2
#define TOKENS (LANES * WIDTH)
/* Rows that are taken together through all panels: as float32 of dim 128 they and a panel just fit a first-level cache. */
#define CHUNK (96 / ROWS * ROWS)

typedef float NAME(floats) __attribute__((vector_size(4 * LANES)));
typedef int32_t NAME(ints) __attribute__((vector_size(4 * LANES)));
/* The same anywhere in memory. Not for variables: GCC 12 keeps such ones on the stack, at half the speed. */
typedef float NAME(loose_floats) __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t NAME(loose_ints) __attribute__((vector_size(4 * LANES), aligned(4)));
#define FLOATS NAME(floats)
#define INTS NAME(ints)
#define FLOATS_AT(p) (*(NAME(loose_floats) *)(p))
#define INTS_AT(p) (*(NAME(loose_ints) *)(p))

/* sums[r][...] = sum over k of rows[r][k] * panel[k][...], with all sums in registers. */
TARGET static inline void NAME(multiply)(const float *rows, int64_t stride, int64_t count, const float *panel,
                                         FLOATS sums[ROWS][WIDTH])
{
    FLOATS kept[ROWS][WIDTH] = {0};
    for (int64_t k = 0; k < count; k++) {
        FLOATS left = FLOATS_AT(panel + k * TOKENS), right = FLOATS_AT(panel + k * TOKENS + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            float value = rows[r * stride + k];
            kept[r][0] += value * left;
            kept[r][1] += value * right;
        }
    }
    memcpy(sums, kept, sizeof kept);
}

TARGET static inline void NAME(bfloats_as_floats)(const uint16_t *row, int64_t count, float scale, float *to)
{
    for (int64_t k = 0; k < count; k++) {
        union { uint32_t bits; float value; } upper = {(uint32_t)row[k] << 16};
        to[k] = upper.value * scale;
    }
}

#if HAS_INT8
/* The same of bytes, where rows are lifted by 128: the instruction takes one side without sign. */
TARGET static inline void NAME(multiply_bytes)(const uint8_t *rows, int64_t count, const int8_t *panel,
                                               __m512i sums[ROWS][WIDTH])
{
    __m512i kept[ROWS][WIDTH];
#pragma GCC unroll 16
    for (int r = 0; r < ROWS; r++)
        kept[r][0] = kept[r][1] = _mm512_setzero_si512();
    for (int64_t k = 0; k < count; k += 4) { /* four coordinates at once */
        __m512i left = _mm512_loadu_si512(panel + k * TOKENS);
        __m512i right = _mm512_loadu_si512(panel + k * TOKENS + 4 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            int32_t four;
            memcpy(&four, rows + r * count + k, sizeof four);
            __m512i value = _mm512_set1_epi32(four);
            kept[r][0] = _mm512_dpbusd_epi32(kept[r][0], value, left);
            kept[r][1] = _mm512_dpbusd_epi32(kept[r][1], value, right);
        }
    }
    memcpy(sums, kept, sizeof kept);
}
#endif

/* Vectors of one instruction set, and the product of a tile; included once for each.
 *
 * Expects: NAME(x), TARGET, LANES, ROWS, LARGER(a, b), ANY_NAN(v), NAME(halves_as_floats), NAME(codes_as_floats);
 * HAS_BFLOAT16 where the instruction set multiplies in it; HAS_INT8 where it multiplies codes, that is numbers of int8: as
 * CODE on the side of the rows, lifted by LIFT, and as TOKEN_CODE on the other, with EVERYWHERE(group),
 * ADD_GROUP(sums, group, tokens), LARGER_INTS(a, b) and NAME(floats_as_codes). undefine.h ends what begins here.
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

/* Memory is waited for longer than it is multiplied, unless it is asked for in time and little by little: with each
 * coordinate, a few bytes of what is needed two tiles later. All of it at the start of a tile, or one tile ahead, which
 * asks for the last rows too late, took up to one and a half times as long (a Xeon with AMX). */
#define ASK_FOR(ahead, bytes) \
    do { \
        if (ahead) { \
            __builtin_prefetch(ahead); \
            ahead += bytes; \
        } \
    } while (0)

/* sums[r][...] = sum over k of rows[r][k] * panel[k][...], with all sums in registers. What lies ahead is asked for, so
 * many bytes a coordinate; NULL: nothing. */
TARGET static inline void NAME(multiply)(const float *rows, int64_t stride, int64_t count, const float *panel,
                                         const char *ahead, int64_t bytes, FLOATS sums[ROWS][WIDTH])
{
    FLOATS kept[ROWS][WIDTH] = {0};
    for (int64_t k = 0; k < count; k++) {
        ASK_FOR(ahead, bytes);
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

TARGET static inline void NAME(floats_as_bfloats)(const float *restrict row, int64_t count, uint16_t *restrict to)
{
    for (int64_t k = 0; k < count; k++)
        to[k] = as_bfloat16(row[k]);
}

#if HAS_BFLOAT16
/* sums += two products of bfloat16 in each lane. In assembly, since GCC 12 copies the sums around such an instruction when
 * it knows it by name: half the speed. */
#define ADD_TWO(sums, pairs, tokens) __asm__("vdpbf16ps %2, %1, %0" : "+v"(sums) : "v"(pairs), "v"(tokens))

/* The same product of bfloat16, two coordinates at once. */
TARGET static inline void NAME(multiply_bfloats)(const uint16_t *rows, int64_t count, const uint16_t *panel,
                                                 const char *ahead, FLOATS sums[ROWS][WIDTH])
{
    FLOATS kept[ROWS][WIDTH] = {0};
    for (int64_t k = 0; k < count; k += 2) {
        ASK_FOR(ahead, 4 * ROWS);
        INTS left = INTS_AT(panel + k * TOKENS), right = INTS_AT(panel + k * TOKENS + 2 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            memcpy(&pair, rows + r * count + k, sizeof pair);
            INTS value = (INTS)_mm512_set1_epi32(pair);
            ADD_TWO(kept[r][0], value, left);
            ADD_TWO(kept[r][1], value, right);
        }
    }
    memcpy(sums, kept, sizeof kept);
}
#endif

#if HAS_INT8
/* How many coordinates four bytes of codes hold. */
#define GROUP ((int64_t)(4 / sizeof(CODE)))

/* The same product of codes, a group of coordinates at once. */
TARGET static inline void NAME(multiply_codes)(const CODE *rows, int64_t count, const TOKEN_CODE *panel, const char *ahead,
                                               INTS sums[ROWS][WIDTH])
{
    INTS kept[ROWS][WIDTH] = {0};
    for (int64_t k = 0; k < count; k += GROUP) {
        ASK_FOR(ahead, GROUP * ROWS);
        INTS left = INTS_AT(panel + k * TOKENS), right = INTS_AT(panel + k * TOKENS + GROUP * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < ROWS; r++) {
            int32_t group;
            memcpy(&group, rows + r * count + k, sizeof group);
            INTS value = EVERYWHERE(group);
            ADD_GROUP(kept[r][0], value, left);
            ADD_GROUP(kept[r][1], value, right);
        }
    }
    memcpy(sums, kept, sizeof kept);
}
#endif

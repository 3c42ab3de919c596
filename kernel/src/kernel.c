/* The kernels for each instruction set, and the choice among them.
 *
 * maxsim.h, attention.h, norm.h and linear.h hold the loops; they are compiled here once for each instruction set, and the CPU
 * is asked which ones it runs. Threads come from OpenMP, whose runtime (and so whose pool) is the one that torch has loaded.
 */
#include "kernel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* AMX: by a compiler that knows it, on Linux, which wants to be asked first. */
#if defined(__x86_64__) && defined(__linux__) && defined(__has_include)
#if __has_include(<amxtileintrin.h>)
#define HAS_TILES 1
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

static int64_t bytes_in(int32_t storage)
{
    return storage == FLOAT32 ? 4 : storage == INT8 ? 1 : 2;
}

/* Bytes from one row of documents to the next. */
static int64_t row_bytes_of(const struct maxsim *job)
{
    if (job->storage == BITS4 || job->storage == BITS2)
        return (job->dim * (job->storage == BITS4 ? 4 : 2) + 7) / 8 + 2;
    return job->dim * bytes_in(job->storage);
}

/* Rounds to the nearest, ties to even; a NaN stays one. */
static inline uint16_t as_bfloat16(float value)
{
    union { float value; uint32_t bits; } u = {value};
    if (value != value)
        return 0x7fc0;
    return (uint16_t)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16);
}

/* By its bits: compilers know _Float16 on plain x86-64 from GCC 12 and clang 15 on. */
static inline float half_as_float(uint16_t half)
{
    uint32_t size = half & 0x7fff, bits = (size << 13) + (size < 0x7c00 ? 112u << 23 : 224u << 23);
    float value;
    memcpy(&value, &bits, sizeof value);
    if (size < 0x400)
        value = (float)size * 0x1p-24f; /* subnormal */
    return half & 0x8000 ? -value : value;
}

/* Coordinates from k on, of codes of so many bits. */
static inline void some_codes_as_floats(const uint8_t *row, int64_t k, int64_t dim, int bits, const float *levels,
                                        float scale, float *to)
{
    for (; k < dim; k++)
        to[k] = levels[(row[k * bits / 8] >> k * bits % 8) & ((1 << bits) - 1)] * scale;
}

/* The beginning of a document: no best yet, (padded query tokens,) float32 or int32. */
static void begin(const struct maxsim *job, int64_t tokens, void *best, int32_t *not_numbers)
{
    for (int64_t t = 0; t < tokens; t++) {
        if (job->arithmetic == IN_INT8)
            ((int32_t *)best)[t] = INT32_MIN;
        else
            ((float *)best)[t] = -INFINITY;
        not_numbers[t] = 0;
    }
}

/* The end of a document: from the best of each query token, (query tokens,) float32 or int32, to the scores. lift is what
 * was added to the documents' codes. */
static void finish(const struct maxsim *job, int64_t document, int64_t length, const void *best, const int32_t *not_numbers,
                   int32_t lift)
{
    for (int64_t q = 0; q < job->queries; q++) {
        double sum = 0; /* in double: adding thousands of float32 would lose digits, and costs nothing here */
        for (int64_t t = job->query_bounds[q]; t < job->query_bounds[q + 1]; t++) {
            double top;
            if (job->arithmetic == IN_INT8)
                top = ((const int32_t *)best)[t] - lift * job->token_sums[t];
            else
                top = not_numbers[t] ? NAN : ((const float *)best)[t];
            sum += job->token_steps ? top * job->token_steps[t] : top;
        }
        if (job->document_steps)
            sum *= job->document_steps[document];
        job->scores[q * job->documents + document] = length ? (float)sum : -INFINITY;
    }
}

/* A document's rows in memory and those of the document behind it, to ask for some before they are needed. */
struct ahead {
    const char *rows, *next;
    int64_t length, row_bytes, row; /* row: what to ask for first, counted from the document's beginning */
};

static struct ahead document_rows(const struct maxsim *job, int64_t document)
{
    int64_t begin = job->bounds[document], length = job->bounds[document + 1] - begin;
    int64_t row_bytes = row_bytes_of(job);
    const char *rows = job->matrices ? job->matrices[document] : (const char *)job->rows + begin * row_bytes;
    const char *next = rows + length * row_bytes;
    if (job->matrices)
        next = job->matrices[document + 1 < job->documents ? document + 1 : document];
    return (struct ahead){rows, next, length, row_bytes, 0};
}

static inline const char *row_ahead(const struct ahead *ahead, int64_t further)
{
    int64_t row = ahead->row + further;
    return row < ahead->length ? ahead->rows + row * ahead->row_bytes
                               : ahead->next + (row - ahead->length) * ahead->row_bytes;
}

/* One head of one sequence, which is one piece of work. padded: attended, filled up to whole panels. */
struct piece {
    int64_t begin, length, attended, padded, head;
};

static struct piece piece_of(const struct attention *job, int64_t number, int64_t panel_tokens)
{
    int64_t sequence = number / job->heads, begin = job->bounds[sequence], attended = job->attended[sequence];
    int64_t padded = (attended + panel_tokens - 1) / panel_tokens * panel_tokens;
    return (struct piece){begin, job->bounds[sequence + 1] - begin, attended, padded, number % job->heads};
}

/* Tokens of the longest sequence, filled up to whole panels. */
static int64_t longest_of(const struct attention *job, int64_t panel_tokens)
{
    int64_t longest = 0;
    for (int64_t s = 0; s < job->sequences; s++)
        longest = job->bounds[s + 1] - job->bounds[s] > longest ? job->bounds[s + 1] - job->bounds[s] : longest;
    return (longest + panel_tokens - 1) / panel_tokens * panel_tokens;
}

struct range {
    int64_t first, stop;
};

/* The keys that any of some neighbouring queries sees; they count from the sequence's beginning. */
static inline struct range keys_seen(const struct attention *job, const struct piece *piece, int64_t first, int64_t count)
{
    int64_t window = job->window;
    if (window < 0)
        return (struct range){0, piece->attended};
    int64_t stop = first + count + window;
    return (struct range){first > window ? first - window : 0, stop < piece->attended ? stop : piece->attended};
}

/* Ask for one head of a token before it is needed: it lies far from that of the token before, where no CPU looks by itself.
 * Saves a fifth of the time of attention. */
static inline void ask_for_token(const struct attention *job, const void *from, int64_t token, int64_t head)
{
    int64_t bytes = bytes_in(job->storage), head_bytes = job->head_dim * bytes;
    const char *ahead = (const char *)from + token * job->stride * bytes + head * head_bytes;
    for (int64_t byte = 0; byte < head_bytes; byte += 64)
        __builtin_prefetch(ahead + byte);
}

/* ------------------------------------------------------------------------------------------- instruction sets */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(x) JOIN(x, ISA)

#if defined(__x86_64__)

/* float16 to float32, with a mask for the end of a row. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static inline void
wide_halves_as_floats(const uint16_t *row, int64_t dim, float scale, float *to)
{
    __m512 scales = _mm512_set1_ps(scale);
    int64_t k = 0;
    for (; k + 16 <= dim; k += 16)
        _mm512_storeu_ps(to + k, _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const void *)(row + k))), scales));
    if (k < dim) {
        __mmask16 rest = (__mmask16)((1u << (dim - k)) - 1);
        __m512 values = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(rest, row + k));
        _mm512_mask_storeu_ps(to + k, rest, _mm512_mul_ps(values, scales));
    }
}

/* Codes to float32, sixteen at once: an index has four bits, of which a code of two bits has the lower ones. */
__attribute__((target("avx512f,avx512bw,avx512vl"))) static inline void
wide_codes_as_floats(const uint8_t *row, int64_t dim, int bits, const float *levels, float scale, float *to)
{
    __m512 table = _mm512_mul_ps(_mm512_loadu_ps(levels), _mm512_set1_ps(scale));
    __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i shifts = bits == 4 ? _mm512_slli_epi32(_mm512_and_si512(places, _mm512_set1_epi32(7)), 2)
                               : _mm512_slli_epi32(places, 1);
    int64_t k = 0;
    for (; k + 16 <= dim; k += 16) {
        int32_t words[2];
        memcpy(words, row + k * bits / 8, 2 * (size_t)bits);
        __m512i all = _mm512_set1_epi32(words[0]);
        if (bits == 4)
            all = _mm512_mask_set1_epi32(all, 0xff00, words[1]);
        _mm512_storeu_ps(to + k, _mm512_permutexvar_ps(_mm512_srlv_epi32(all, shifts), table));
    }
    some_codes_as_floats(row, k, dim, bits, levels, scale, to);
}

/* In assembly for the same reason as ADD_TWO. */
#define FOUR_PRODUCTS(sums, fours, tokens) __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(fours), "v"(tokens))

__attribute__((target("avx512f,avx512bw,avx512vl"))) static inline void
floats_as_codes_avx512_dot(const float *x, float scale, uint8_t *out)
{
    __m512i whole = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), _mm512_set1_ps(scale)));
    _mm_storeu_si128((void *)out, _mm_xor_si128(_mm512_cvtepi32_epi8(whole), _mm_set1_epi8((char)0x80)));
}

#define ISA avx512_dot
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,fma,f16c")))
#define LANES 16
#define ROWS 12
#define LARGER(a, b) ((FLOATS)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define ANY_NAN(v) _mm512_cmp_ps_mask((__m512)(v), (__m512)(v), _CMP_UNORD_Q)
#define halves_as_floats_avx512_dot wide_halves_as_floats
#define codes_as_floats_avx512_dot wide_codes_as_floats
#define HAS_BFLOAT16 1
/* Bytes by bytes, four at once; one side has no sign. */
#define HAS_INT8 1
#define CODE uint8_t
#define TOKEN_CODE int8_t
#define LIFT 128
#define EVERYWHERE(group) ((INTS)_mm512_set1_epi32(group))
#define ADD_GROUP(sums, group, tokens) FOUR_PRODUCTS(sums, group, tokens)
#define LARGER_INTS(a, b) ((INTS)_mm512_max_epi32((__m512i)(a), (__m512i)(b)))
#include "vectors.h"
#include "maxsim.h"
#include "attention.h"
#include "norm.h"
#include "linear.h"
#include "undefine.h"

#if HAS_TILES
#include "tiles.h"
#include "maxsim_tiles.h"
#include "attention_tiles.h"
#endif

#define ISA avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")))
#define LANES 16
#define ROWS 12
#define LARGER(a, b) ((FLOATS)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define ANY_NAN(v) _mm512_cmp_ps_mask((__m512)(v), (__m512)(v), _CMP_UNORD_Q)
#define halves_as_floats_avx512 wide_halves_as_floats
#define codes_as_floats_avx512 wide_codes_as_floats
#include "vectors.h"
#include "maxsim.h"
#include "attention.h"
#include "norm.h"
#include "linear.h"
#include "undefine.h"

#define ISA avx2
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define LANES 8
#define ROWS 6
#define LARGER(a, b) ((FLOATS)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define ANY_NAN(v) _mm256_movemask_ps(_mm256_cmp_ps((__m256)(v), (__m256)(v), _CMP_UNORD_Q))
TARGET static inline void halves_as_floats_avx2(const uint16_t *row, int64_t dim, float scale, float *to)
{
    __m256 scales = _mm256_set1_ps(scale);
    int64_t k = 0;
    for (; k + 8 <= dim; k += 8)
        _mm256_storeu_ps(to + k, _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128((const void *)(row + k))), scales));
    for (; k < dim; k++)
        to[k] = _cvtsh_ss(row[k]) * scale;
}
/* An index has three bits here, and the fourth says which half of the levels. */
TARGET static inline void codes_as_floats_avx2(const uint8_t *row, int64_t dim, int bits, const float *levels, float scale,
                                               float *to)
{
    __m256 scales = _mm256_set1_ps(scale);
    __m256 lower = _mm256_mul_ps(_mm256_loadu_ps(levels), scales), upper = _mm256_mul_ps(_mm256_loadu_ps(levels + 8), scales);
    __m256i shifts = _mm256_mullo_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(bits));
    int64_t k = 0;
    for (; k + 8 <= dim; k += 8) {
        int32_t word = 0;
        memcpy(&word, row + k * bits / 8, (size_t)bits);
        __m256i codes = _mm256_srlv_epi32(_mm256_set1_epi32(word), shifts);
        __m256 low = _mm256_permutevar8x32_ps(lower, codes), high = _mm256_permutevar8x32_ps(upper, codes);
        _mm256_storeu_ps(to + k, _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(codes, 28))));
    }
    some_codes_as_floats(row, k, dim, bits, levels, scale, to);
}
TARGET static inline void floats_as_codes_avx2(const float *x, float scale, int16_t *out)
{
    __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x), _mm256_set1_ps(scale)));
    _mm_storeu_si128((void *)out, _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}
/* By 16 bits, two at once. Bytes by bytes would take three instructions, and its sums of two are cut off at 16 bits. */
#define HAS_INT8 1
#define CODE int16_t
#define TOKEN_CODE int16_t
#define LIFT 0
#define EVERYWHERE(group) ((INTS)_mm256_set1_epi32(group))
#define ADD_GROUP(sums, group, tokens) (sums += (INTS)_mm256_madd_epi16((__m256i)(group), (__m256i)(tokens)))
#define LARGER_INTS(a, b) ((INTS)_mm256_max_epi32((__m256i)(a), (__m256i)(b)))
#include "vectors.h"
#include "maxsim.h"
#include "attention.h"
#include "norm.h"
#include "linear.h"
#include "undefine.h"

#endif

typedef float four_floats __attribute__((vector_size(16)));
typedef int32_t four_ints __attribute__((vector_size(16)));

static inline four_floats larger_of_four(four_floats a, four_floats b)
{
    four_ints first = a > b; /* all bits or none */
    return (four_floats)(((four_ints)a & first) | ((four_ints)b & ~first));
}

static inline int any_nan_of_four(four_floats v)
{
    four_ints bad = v != v;
    return (bad[0] | bad[1] | bad[2] | bad[3]) != 0;
}

#define ISA portable
#define TARGET
#define LANES 4
#define ROWS 6
#define LARGER(a, b) larger_of_four(a, b)
#define ANY_NAN(v) any_nan_of_four(v)
static inline void codes_as_floats_portable(const uint8_t *row, int64_t dim, int bits, const float *levels, float scale,
                                            float *to)
{
    some_codes_as_floats(row, 0, dim, bits, levels, scale, to);
}
static inline void halves_as_floats_portable(const uint16_t *row, int64_t dim, float scale, float *to)
{
    for (int64_t k = 0; k < dim; k++)
        to[k] = half_as_float(row[k]) * scale;
}
#include "vectors.h"
#include "maxsim.h"
#include "attention.h"
#include "norm.h"
#include "linear.h"
#include "undefine.h"

/* --------------------------------------------------------------------------------------------------- dispatch */

struct instruction_set {
    const char *name;
    int64_t panel_tokens;
    int multiplies_bfloat16;
    int64_t code_bytes; /* of numbers of int8 as it multiplies them; 0 if it doesn't */
    int (*score)(const struct maxsim *, int32_t);
    int (*attention)(const struct attention *, int32_t);
    int (*norm)(const struct norm *, int32_t);
    int (*linear)(const struct linear *, int32_t);
};

#if HAS_TILES
/* Whether the CPU has tiles and Linux lets this process use them, which it answers once: for all threads, for good. */
static int may_use_tiles(void)
{
    static int answer; /* 0: not asked yet; asking twice does no harm */
    int known = __atomic_load_n(&answer, __ATOMIC_RELAXED);
    if (!known) {
        const unsigned tiles = 1u << 24, in_bfloat16 = 1u << 22, in_int8 = 1u << 25, all = tiles | in_bfloat16 | in_int8;
        unsigned a, b, c, d;
        int has = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & all) == all;
        known = has && !syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XFEATURE_XTILEDATA */) ? 1 : -1;
        __atomic_store_n(&answer, known, __ATOMIC_RELAXED);
    }
    return known > 0;
}
#endif

/* The instruction sets that this CPU runs, best first; NULL behind the last. */
static const struct instruction_set *instruction_set(int32_t rank)
{
    static const struct instruction_set portable = {"portable", 8, 0, 0, score_portable, attention_portable, norm_portable, linear_portable};
    const struct instruction_set *runs[5];
    int32_t count = 0;
#if defined(__x86_64__)
    static const struct instruction_set avx512_dot = {"avx512_dot", 32, 1, 1, score_avx512_dot, attention_avx512_dot, norm_avx512_dot, linear_avx512_dot};
    static const struct instruction_set avx512 = {"avx512", 32, 0, 0, score_avx512, attention_avx512, norm_avx512, linear_avx512};
    static const struct instruction_set avx2 = {"avx2", 16, 0, 2, score_avx2, attention_avx2, norm_avx2, linear_avx2};
    int wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    int dot = wide && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#if HAS_TILES
    static const struct instruction_set amx = {"amx", 32, 1, 1, score_amx, attention_amx, norm_avx512_dot, linear_avx512_dot};
    if (dot && may_use_tiles())
        runs[count++] = &amx;
#endif
    if (dot)
        runs[count++] = &avx512_dot;
    if (wide)
        runs[count++] = &avx512;
    /* Every CPU with AVX2 and FMA converts float16 too; GCC 12 can't ask for that. */
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        runs[count++] = &avx2;
#endif
    runs[count++] = &portable;
    return rank < count ? runs[rank] : NULL;
}

/* ------------------------------------------------------------------------------------------------------- doors */

int32_t kernel_interface(void)
{
    return INTERFACE;
}

const char *maxsim_instruction_set(int32_t rank)
{
    return instruction_set(rank) ? instruction_set(rank)->name : NULL;
}

int maxsim_supports(int32_t rank, int32_t arithmetic)
{
    const struct instruction_set *set = instruction_set(rank);
    return arithmetic == IN_FLOAT32 || (arithmetic == IN_BFLOAT16 && set->multiplies_bfloat16) ||
           (arithmetic == IN_INT8 && set->code_bytes);
}

static int64_t bytes_of(int32_t rank, int32_t arithmetic)
{
    return arithmetic == IN_FLOAT32 ? 4 : arithmetic == IN_BFLOAT16 ? 2 : instruction_set(rank)->code_bytes;
}

int64_t maxsim_packed_bytes(int32_t rank, int32_t arithmetic, int64_t tokens, int64_t dim)
{
    int64_t width = instruction_set(rank)->panel_tokens;
    return (tokens + width - 1) / width * width * dim * bytes_of(rank, arithmetic);
}

void maxsim_pack(int32_t rank, int32_t arithmetic, const void *values, int64_t tokens, int64_t dim, void *packed)
{
    int64_t width = instruction_set(rank)->panel_tokens, group = 4 / bytes_of(rank, arithmetic); /* coordinates in 4 bytes */
    memset(packed, 0, maxsim_packed_bytes(rank, arithmetic, tokens, dim));
    for (int64_t t = 0; t < tokens; t++) {
        int64_t from = t * dim, to = t / width * width * dim + t % width * group;
        if (arithmetic == IN_FLOAT32)
            for (int64_t k = 0; k < dim; k++)
                ((float *)packed)[to + k * width] = ((const float *)values)[from + k];
        else if (arithmetic == IN_BFLOAT16)
            for (int64_t k = 0; k < dim; k++)
                ((uint16_t *)packed)[to + k / 2 * 2 * width + k % 2] = as_bfloat16(((const float *)values)[from + k]);
        else if (group == 2)
            for (int64_t k = 0; k < dim; k++)
                ((int16_t *)packed)[to + k / 2 * 2 * width + k % 2] = ((const int8_t *)values)[from + k];
        else
            for (int64_t k = 0; k < dim; k++)
                ((int8_t *)packed)[to + k / 4 * 4 * width + k % 4] = ((const int8_t *)values)[from + k];
    }
}

int maxsim_score(int32_t rank, const struct maxsim *job, int32_t threads)
{
    return instruction_set(rank)->score(job, threads);
}

int linear(int32_t rank, const struct linear *job, int32_t threads)
{
    return instruction_set(rank)->linear(job, threads);
}

int norm(int32_t rank, const struct norm *job, int32_t threads)
{
    return instruction_set(rank)->norm(job, threads);
}

int attention(int32_t rank, const struct attention *job, int32_t threads)
{
    return instruction_set(rank)->attention(job, threads);
}

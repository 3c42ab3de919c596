/* What the compiled kernel offers, and what its jobs are. */
#ifndef KERNEL_H
#define KERNEL_H

#include <stdint.h>

/* In which form the vectors of documents are kept. In 4 or 2 bits a row has the codes of its coordinates, the first in the
 * lowest bits, filled up to whole bytes, and then as float16 what all of them are multiplied by. */
enum storage { FLOAT32 = 0, FLOAT16 = 1, BFLOAT16 = 2, INT8 = 3, BITS4 = 4, BITS2 = 5 };

/* In which arithmetic products are made. Queries must have been packed for the same one. */
enum arithmetic { IN_FLOAT32 = 0, IN_BFLOAT16 = 1, IN_INT8 = 2 };

/* One call of maxsim_score: all documents against all queries. Row-major, contiguous arrays throughout; NULL where not needed. */
struct maxsim {
    int32_t storage, arithmetic;
    int64_t dim;
    const void *rows;            /* (bounds[documents], dim), in the form of storage; NULL if matrices is given */
    const void *const *matrices; /* (documents,): the rows of each document, wherever they lie */
    const float *row_scales;     /* (bounds[documents],): what each row is multiplied by; in float32 only */
    const float *levels;         /* (16,): what each code of 4 bits stands for, or each code of 2 bits, four times over */
    const float *document_steps; /* (documents,): what the sums of each document are multiplied by */
    const int64_t *bounds;       /* (documents + 1,): where documents begin in rows, from 0 */
    int64_t documents;
    const void *packed;          /* what maxsim_pack made of the queries */
    const float *token_steps;    /* (query tokens,): what the maxima of each query token are multiplied by */
    const int32_t *token_sums;   /* (query tokens,): sum of the codes of each query token; in int8 only */
    const int64_t *query_bounds; /* (queries + 1,): where queries begin in the query tokens, from 0 */
    int64_t queries;
    float *scores;               /* (queries, documents) */
};

/* One call of attention: softmax(scale * queries keys^T) values, within each head of each sequence. */
struct attention {
    int32_t storage;              /* of queries, keys, values and out: FLOAT32 or BFLOAT16; inside it is float32 */
    int64_t sequences, heads, head_dim;
    int64_t stride;               /* values from one token to the next in queries, keys, values: (tokens, stride) */
    int64_t window;               /* how many tokens to either side a token sees; -1: all */
    float scale;
    const void *queries, *keys, *values; /* heads side by side in each row */
    const int64_t *bounds;        /* (sequences + 1,): where sequences begin, from 0 */
    const int64_t *attended;      /* (sequences,): how many leading tokens of each may be seen */
    const float *cosines, *sines; /* (tokens, head_dim / 2): by which coordinates k and k + head_dim / 2 of queries and keys
                                   * turn before; NULL: they don't */
    void *out;                    /* (tokens, heads * head_dim) */
};

/* What follows the sums of a linear layer. */
enum activation { NONE = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

/* One call of linear: out = activation(x weights^T + bias) * factors. */
struct linear {
    int32_t arithmetic;   /* IN_FLOAT32, or IN_INT8: then weights and x are rounded to it */
    int32_t activation;
    int64_t rows, inputs, outputs;
    const float *x;       /* (rows, inputs) */
    const void *packed;   /* what maxsim_pack made of the weights, (outputs, inputs); in int8 inputs fill a multiple of 4 */
    const float *steps;   /* (outputs, filling a multiple of 32): what one step of each output's weights is worth; in int8 */
    const int32_t *sums;  /* the same: sum of the codes of each output's weights; in int8 */
    const float *bias;    /* the same, or NULL */
    const float *factors; /* (rows, outputs), or NULL */
    float *out;           /* (rows, outputs) */
};

/* One call of norm: out = weight (x - mean) / sqrt(variance + eps) + bias for each row x = left + right. */
struct norm {
    int32_t storage;     /* of left: FLOAT32 or BFLOAT16 */
    int64_t rows, width;
    float eps;
    const void *left;    /* (rows, width) */
    const float *right;  /* the same, or NULL */
    const float *weight; /* (width,) */
    const float *bias;   /* (width,), or NULL */
    float *total;        /* (rows, width): x, or NULL */
    float *normed;       /* (rows, width): out, or NULL; one of these two is needed, to add in */
    void *rounded;       /* (rows, width): out in bfloat16, or NULL */
};

/* The instruction sets that this CPU runs are numbered by rank, 0 the best. */

/* Counts up whenever a job or a function changes. */
#define INTERFACE 4
int32_t kernel_interface(void);

/* The name of one, or NULL where there is none of that rank. */
const char *maxsim_instruction_set(int32_t rank);

/* Whether it multiplies in an arithmetic by itself: float32 always, the others not on all. */
int maxsim_supports(int32_t rank, int32_t arithmetic);

/* Bytes that maxsim_pack writes. */
int64_t maxsim_packed_bytes(int32_t rank, int32_t arithmetic, int64_t tokens, int64_t dim);

/* Lay out query tokens, (tokens, dim), for the inner loop. They come as float32, for int8 as int8. */
void maxsim_pack(int32_t rank, int32_t arithmetic, const void *values, int64_t tokens, int64_t dim, void *packed);

/* Score: 0, or 1 if there is not enough memory. A document without rows scores -inf; a NaN makes its scores NaN. */
int maxsim_score(int32_t rank, const struct maxsim *job, int32_t threads);

/* Attend: 0, or 1 if there is not enough memory. */
int attention(int32_t rank, const struct attention *job, int32_t threads);

/* A linear layer, in an arithmetic that maxsim_supports, not in bfloat16: 0, or 1 if there is not enough memory. */
int linear(int32_t rank, const struct linear *job, int32_t threads);

/* Normalise: 0. */
int norm(int32_t rank, const struct norm *job, int32_t threads);

#endif

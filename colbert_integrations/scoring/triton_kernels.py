"""The Triton kernels of MaxSim and of the best of few scores. Only ``triton.py`` imports them."""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["maxsim_kernel", "top_k_kernel"]

# Neither tl.sum nor tl.zeros below: they are kernels themselves, and can't be interpreted where something else
# imported triton before the interpreter was chosen. torch._dynamo does.


@triton.jit
def larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The larger of two numbers, NaN if one is: ``tl.max`` would drop the NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def added(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The sum of two numbers."""
    return a + b


@triton.jit
def load_chunks(start: tl.tensor, DIM: tl.constexpr, CHUNK: tl.constexpr) -> tl.tuple:
    """A matrix of DIM columns as a tuple of matrices of CHUNK, since a block must be a power of 2 wide."""
    inner = tl.arange(0, CHUNK)[None, :]
    chunks = (tl.load(start + inner),)
    for chunk in tl.static_range(CHUNK, DIM, CHUNK):
        chunks += (tl.load(start + chunk + inner),)  # type: ignore[assignment]
    return chunks


@triton.jit
def best_of_document(
    stack: tl.tuple,
    rows: tl.tensor,
    length: tl.tensor,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    TILE: tl.constexpr,
) -> tl.tensor:
    """The largest similarity of each row of a stack within one document, ``(STACK,)``."""
    integer: tl.constexpr = stack[0].dtype == tl.int8
    accumulator: tl.constexpr = tl.int32 if integer else tl.float32
    tokens: tl.constexpr = stack[0].shape[0]
    best = tl.full((tokens,), -(2**31) if integer else float("-inf"), accumulator)
    inner = tl.arange(0, CHUNK)[:, None]
    for start in range(0, length, TILE):
        # Past the document's end its last row comes again, which no maximum notices: no mask, and no second path.
        row = tl.minimum(start + tl.arange(0, TILE), length - 1)[None, :]
        similarities = tl.full((tokens, TILE), 0, accumulator)
        for chunk in tl.static_range(DIM // CHUNK):
            some = tl.load(rows + row * DIM + chunk * CHUNK + inner).to(stack[chunk].dtype)  # (CHUNK, TILE)
            similarities = tl.dot(stack[chunk], some, similarities, input_precision="ieee", out_dtype=accumulator)
        best = larger(best, tl.reduce(similarities, 1, larger))
    return best


# Numbers change from call to call and a new variant takes a second to compile, so they make none.
@triton.jit(
    do_not_specialize=["documents", "slots", "stacks", "run"],
    do_not_specialize_on_alignment=["offsets", "steps", "scores"],
)
def maxsim_kernel(
    queries: tl.tensor,
    weights: tl.tensor,
    rows: tl.tensor,
    offsets: tl.tensor,
    steps: tl.tensor,
    scores: tl.tensor,
    documents: tl.tensor,
    slots: tl.tensor,
    stacks: tl.tensor,
    run: tl.tensor,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    STACK: tl.constexpr,
    SLOT: tl.constexpr,
    TILE: tl.constexpr,
) -> None:
    """Score a run of documents against one stack of queries.

    ``scores[slot, j] = steps[j] sum_s weights[s] max_t <queries[s], rows[offsets[j] + t]>``, s over the slot's rows

    Args:
        queries: ``(stacks * STACK, DIM)``, in the dtype to multiply in.
        weights: What the maximum of each counts, ``(stacks * STACK,)`` float32; where 0 even a NaN doesn't count.
        rows: Token vectors of the documents, ``(tokens, DIM)``.
        offsets: Where each document begins, ``(documents + 1,)`` int64.
        steps: What a document's score is multiplied by, ``(documents,)`` float32. None: 1.
        scores: Written, ``(slots, documents)`` float32.
        documents: How many.
        slots: How many queries, or parts of queries.
        stacks: How many; a stack holds STACK // SLOT slots.
        run: Documents per program.
        DIM: A multiple of CHUNK.
        CHUNK: Dimensions that are multiplied at once, a power of 2.
        STACK: Query tokens that share one reading of the documents, a power of 2.
        SLOT: Query tokens of one slot, a power of 2 up to STACK.
        TILE: Document tokens that are multiplied at once, a power of 2.
    """
    # Neighbours take the same documents, so that all stacks but the first find them in the L2 cache.
    stack = (tl.program_id(0) % stacks).to(tl.int64)
    first = tl.program_id(0) // stacks * run
    token = stack * STACK + tl.arange(0, STACK)
    slot = stack * (STACK // SLOT) + tl.arange(0, STACK // SLOT)
    weight = tl.load(weights + token)
    chunks = load_chunks(queries + token[:, None] * DIM, DIM, CHUNK)
    begin = tl.load(offsets + first)  # int64, so its product with DIM is right beyond 2**31 elements
    end = tl.load(offsets + first + 1)
    for document in range(first, tl.minimum(first + run, documents)):
        # On its way while this document is scored; the next one's rows can't be asked for without it.
        following = tl.load(offsets + tl.minimum(document + 2, documents))
        length = (end - begin).to(tl.int32)
        best = best_of_document(chunks, rows + begin * DIM, length, DIM, CHUNK, TILE)
        counted = tl.where(weight != 0, best.to(tl.float32) * weight, 0.0)
        total = tl.reduce(tl.reshape(counted, (STACK // SLOT, SLOT)), 1, added)  # (STACK // SLOT,)
        if steps is not None:
            total *= tl.load(steps + document)
        total = tl.where(length > 0, total, float("-inf"))
        tl.store(scores + slot * documents + document, total, mask=slot < slots)
        begin = end
        end = following


@triton.jit(do_not_specialize=["documents", "k"], do_not_specialize_on_alignment=["scores", "best", "positions"])
def top_k_kernel(
    scores: tl.tensor,
    best: tl.tensor,
    positions: tl.tensor,
    documents: tl.tensor,
    k: tl.tensor,
    ROOM: tl.constexpr,
) -> None:
    """Take the largest score of a query k times; a NaN is larger than any, and of equal ones the first comes first.

    Args:
        scores: ``(queries, documents)`` float32.
        best: Written, falling, ``(queries, k)`` float32.
        positions: Written, where they are, ``(queries, k)`` int64.
        documents: How many.
        k: How many at most of them.
        ROOM: A power of 2, at least as many as there are documents.
    """
    query = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, ROOM)
    score = tl.load(scores + query * documents + place, mask=place < documents, other=0.0)
    bits = tl.where(score == 0, 0.0, score).to(tl.int32, bitcast=True)  # 0 and -0 are equal
    # The bits of a negative number fall where the number rises.
    rising = tl.where(score == score, tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits), 0x7FFFFFFF)
    # Score and place in one number: a single maximum finds both, and no two are equal.
    least: tl.constexpr = -(2**63)
    keys = tl.where(place < documents, (rising.to(tl.int64) << 32) + (0x7FFFFFFF - place), least)
    for rank in range(k):
        top = tl.reduce(keys, 0, larger)
        keys = tl.where(keys == top, least, keys)
        high = (top >> 32).to(tl.int32)
        number = tl.where(high < 0, high ^ 0x7FFFFFFF, high).to(tl.float32, bitcast=True)
        tl.store(best + query * k + rank, number)
        tl.store(positions + query * k + rank, 0x7FFFFFFF - (top & 0x7FFFFFFF))

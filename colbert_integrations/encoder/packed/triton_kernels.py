"""Triton kernels of an encoder: all but its linear layers, and of these the one that gelu follows.

Only ``triton_layers.py`` and ``triton_attention.py`` import them.
"""

# mypy: disable-error-code="untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add_norm_kernel", "attention_kernel", "gelu_gate_kernel", "gelu_product_kernel", "rotate_kernel"]

# Neither tl.sum nor tl.max: they are kernels themselves, and can't be interpreted where something else imported triton
# before the interpreter was chosen. torch._dynamo does.


@triton.jit
def added(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The sum of two numbers."""
    return a + b


@triton.jit
def larger(a: tl.tensor, b: tl.tensor) -> tl.tensor:
    """The larger of two numbers."""
    return tl.maximum(a, b)


@triton.jit
def load_rows(
    matrix: tl.tensor,
    rows: tl.tensor,
    token: tl.tensor,
    exists: tl.tensor,
    column: tl.tensor,
    inside: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """The row of each token, or the one that ``rows`` names, in float32; zero outside."""
    row = token if rows is None else tl.load(rows + token, mask=exists, other=0)
    return tl.load(matrix + row.to(tl.int64) * WIDTH + column, mask=inside, other=0).to(tl.float32)


# A number of tokens makes no variant: a new one takes a second to compile. Neither does where ids lie in a buffer.
@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["left_rows", "right_rows"])
def add_norm_kernel(
    left: tl.tensor,
    left_rows: tl.tensor,
    right: tl.tensor,
    right_rows: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    tokens: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Add two matrices and normalise each row of the sum, in float32 whatever they are stored in.

    Args:
        left: ``(tokens, WIDTH)``, or a table.
        left_rows: Row of each token in the table, ``(tokens,)``. None: the token's own.
        right: The same, to be added. None: nothing.
        right_rows: The same for it.
        weight: ``(WIDTH,)`` float32.
        bias: ``(WIDTH,)`` float32. None: none.
        total: Written, the sum, ``(tokens, WIDTH)``; may be ``right``. None: not kept.
        normed: Written, the normalised rows, ``(tokens, WIDTH)``.
        tokens: How many.
        eps: Added to the variance.
        WIDTH: Columns.
        BLOCK: The next power of 2.
        ROWS: Rows of a program, a power of 2.
    """
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    exists = token < tokens  # (ROWS, 1)
    column = tl.arange(0, BLOCK)[None, :]
    inside = exists & (column < WIDTH)  # (ROWS, BLOCK)
    x = load_rows(left, left_rows, token, exists, column, inside, WIDTH)
    if right is not None:
        x += load_rows(right, right_rows, token, exists, column, inside, WIDTH)
    place = token * WIDTH + column
    if total is not None:
        tl.store(total + place, x.to(total.dtype.element_ty), mask=inside)
    mean = tl.reduce(x, 1, added)[:, None] / WIDTH
    x = tl.where(inside, x - mean, 0.0)
    variance = tl.reduce(x * x, 1, added)[:, None] / WIDTH
    y = x * tl.rsqrt(variance + eps) * tl.load(weight + column, mask=column < WIDTH, other=0)
    if bias is not None:
        y += tl.load(bias + column, mask=column < WIDTH, other=0)
    tl.store(normed + place, y.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def gelu(x: tl.tensor) -> tl.tensor:
    """``x`` times the normal distribution up to it: ``max(x, 0) - |x| * tail(|x|)``.

    The tail is 2 to a polynomial, fitted up to 7, where it is 1e-12: it errs 8e-6 of itself, a sixtieth of what float16
    rounds. ``tl.erf`` has twice the instructions: by their number, as much time as a product of 384 inputs before it.
    """
    size = tl.minimum(tl.abs(x), 7.0)
    power = 5.2154039309471045e-08
    power = power * size - 3.0773546768614324e-06
    power = power * size + 7.351286330958828e-05
    power = power * size - 0.0009893429232761264
    power = power * size + 0.008666511625051498
    power = power * size - 0.054188333451747894
    power = power * size - 0.45830661058425903
    power = power * size - 1.1512913703918457
    power = power * size - 0.9999936819076538
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - size * tl.exp2(power)


@triton.jit(do_not_specialize=["tokens"])
def gelu_gate_kernel(
    both: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """``out = gelu(left) * right`` of each two columns side by side.

    Args:
        both: ``(tokens, 2 * WIDTH)``.
        out: Written, ``(tokens, WIDTH)``.
        tokens: How many.
        WIDTH: Columns that come out.
        COLUMNS: Those of a program, a power of 2.
        ROWS: Rows of a program, a power of 2.
    """
    token = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    first = tl.program_id(1) * COLUMNS
    entry = 2 * first + tl.arange(0, 2 * COLUMNS)[None, :]
    pairs = tl.load(both + token * (2 * WIDTH) + entry, mask=(token < tokens) & (entry < 2 * WIDTH), other=0)
    column = first + tl.arange(0, COLUMNS)[None, :]
    left, right = tl.split(tl.reshape(pairs.to(tl.float32), (ROWS, COLUMNS, 2)))
    y = gelu(left) * right  # (ROWS, COLUMNS)
    tl.store(out + token * WIDTH + column, y.to(out.dtype.element_ty), mask=(token < tokens) & (column < WIDTH))


@triton.jit(do_not_specialize=["tokens"])
def gelu_product_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    STEP: tl.constexpr,
) -> None:
    """``out = gelu(x weight^T + bias)``: what is multiplied is not written in between.

    Args:
        x: ``(tokens, INPUTS)``.
        weight: ``(OUTPUTS, INPUTS)``.
        bias: ``(OUTPUTS,)``. None: none.
        out: Written, ``(tokens, OUTPUTS)``.
        tokens: At least one.
        INPUTS: A multiple of STEP.
        OUTPUTS: A multiple of COLUMNS.
        ROWS: Those of a program, a power of 2.
        COLUMNS: The same.
        STEP: Inputs that are multiplied at once, a power of 2.
    """
    # Neighbours share rows; the weights stay in the L2 cache.
    token = (tl.program_id(0) // (OUTPUTS // COLUMNS)).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) % (OUTPUTS // COLUMNS) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inner = tl.arange(0, STEP)
    # Past the end the last row comes again, and is not stored: no mask.
    left = x + tl.minimum(token, tokens - 1) * INPUTS + inner[None, :]
    right = weight + column * INPUTS + inner[:, None]
    y = tl.full((ROWS, COLUMNS), 0, tl.float32)
    for start in range(0, INPUTS, STEP):
        y = tl.dot(tl.load(left + start), tl.load(right + start), y, input_precision="ieee")
    if bias is not None:
        y += tl.load(bias + column).to(tl.float32)
    tl.store(out + token * OUTPUTS + column, gelu(y).to(out.dtype.element_ty), mask=token < tokens)


@triton.jit
def rotate_kernel(
    mixed: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
) -> None:
    """Turn queries and keys of one token in place; coordinate i pairs with i + HALF.

    Args:
        mixed: Queries, keys and values of each token, ``(tokens, 3, HEADS, 2 * HALF)``.
        cosines: Of each token's angles, ``(tokens, HALF)`` float32.
        sines: The same.
        HEADS: Heads.
        HALF: Half of a head's dimension.
        BLOCK_HEADS: The next power of 2 from ``2 * HEADS`` on.
        BLOCK_HALF: The same for HALF.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, BLOCK_HEADS)[:, None]  # queries, then keys
    pair = tl.arange(0, BLOCK_HALF)[None, :]
    cosine = tl.load(cosines + token * HALF + pair, mask=pair < HALF, other=0)
    sine = tl.load(sines + token * HALF + pair, mask=pair < HALF, other=0)
    inside = (head < 2 * HEADS) & (pair < HALF)  # (BLOCK_HEADS, BLOCK_HALF)
    place = mixed + token * (6 * HEADS * HALF) + head * (2 * HALF) + pair
    left = tl.load(place, mask=inside, other=0).to(tl.float32)
    right = tl.load(place + HALF, mask=inside, other=0).to(tl.float32)
    tl.store(place, (left * cosine - right * sine).to(mixed.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (right * cosine + left * sine).to(mixed.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["window"], do_not_specialize_on_alignment=["bounds", "attended", "places"])
def attention_kernel(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    out: tl.tensor,
    bounds: tl.tensor,
    attended: tl.tensor,
    places: tl.tensor,
    stride: tl.tensor,
    scale: tl.tensor,
    window: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
) -> None:
    """Let a block of one sequence's tokens attend to its keys, for one head.

    ``out[i] = sum_j 2^(scale <query[i], key[j]>) value[j] / sum_j 2^(scale <query[i], key[j]>)``, over those that are
    seen

    Args:
        query: Of every token, ``(tokens, HEADS, HEAD_DIM)``; ``stride`` numbers from one token to the next.
        key: The same.
        value: The same.
        out: Written, ``(tokens, HEADS, HEAD_DIM)``, contiguous; 0 for a token that sees nothing.
        bounds: Where each sequence begins and the last one ends, ``(sequences + 1,)`` int32.
        attended: How many leading tokens of each sequence may be seen, ``(sequences,)`` int32.
        places: Sequence, and first token within it, of each block, ``(blocks, 2)`` int32.
        stride: See ``query``.
        scale: Logarithm of e to the base 2, over the root of HEAD_DIM.
        window: How many tokens to either side a token sees.
        HEADS: How many.
        HEAD_DIM: A power of 2, at least 16.
        BLOCK: Tokens of a block, a power of 2.
        TILE: Keys that are multiplied at once, a power of 2.
        WINDOWED: Whether there is a window.

    Source:
        Dao 2023, arXiv:2307.08691, algorithm 1.
    """
    # All heads of a block are neighbours: they lie in the same lines of memory.
    head = tl.program_id(0) % HEADS
    block = tl.program_id(0) // HEADS
    sequence = tl.load(places + 2 * block)
    first = tl.load(places + 2 * block + 1)
    begin = tl.load(bounds + sequence)
    length = tl.load(bounds + sequence + 1) - begin
    seen = tl.load(attended + sequence)
    base = begin.to(tl.int64) * stride + head * HEAD_DIM
    column = tl.arange(0, HEAD_DIM)
    row = first + tl.arange(0, BLOCK)
    # Beyond the end the last row comes again instead of a mask: no load reaches other sequences, and no store is made.
    asked = tl.load(query + base + tl.minimum(row, length - 1)[:, None] * stride + column[None, :])  # (BLOCK, HEAD_DIM)
    low = 0
    high = seen
    if WINDOWED:
        low = tl.maximum(first - window, 0)
        high = tl.minimum(seen, first + BLOCK + window)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.full((BLOCK,), 0.0, tl.float32)
    mixed = tl.full((BLOCK, HEAD_DIM), 0.0, tl.float32)
    for start in range(low, high, TILE):
        place = start + tl.arange(0, TILE)
        lines = tl.minimum(place, seen - 1) * stride
        keys = tl.load(key + base + lines[None, :] + column[:, None])  # (HEAD_DIM, TILE)
        scores = tl.dot(asked, keys, input_precision="ieee") * scale  # (BLOCK, TILE)
        visible = (place < seen)[None, :]
        if WINDOWED:
            away = row[:, None] - place[None, :]
            visible = visible & (away <= window) & (away >= -window)
        scores = tl.where(visible, scores, float("-inf"))
        above = tl.maximum(most, tl.reduce(scores, 1, larger))
        # Where nothing was seen yet: -inf less -inf would be NaN.
        safe = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.exp2(scores - safe[:, None])
        fading = tl.exp2(most - safe)
        total = total * fading + tl.reduce(weights, 1, added)
        values = tl.load(value + base + lines[:, None] + column[None, :])  # (TILE, HEAD_DIM)
        mixed = mixed * fading[:, None]
        mixed = tl.dot(weights.to(values.dtype), values, mixed, input_precision="ieee")
        most = above
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    line = (begin + row).to(tl.int64)[:, None] * (HEADS * HEAD_DIM) + head * HEAD_DIM + column[None, :]
    tl.store(out + line, mixed.to(out.dtype.element_ty), mask=(row < length)[:, None])

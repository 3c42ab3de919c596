"""Batches and windows: everything is covered once, and nothing exceeds its budget."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colbert_integrations.encoder.batching import batches_by_tokens, window_starts


@given(st.lists(st.integers(0, 50)), st.integers(1, 120), st.none() | st.integers(1, 5), st.booleans())
def test_each_sequence_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, size: int | None, packed: bool
) -> None:
    batches = list(batches_by_tokens(lengths, budget, size, packed=packed))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], []], strict=False):
        cost = tokens([lengths[position] for position in batch], packed)
        assert cost <= budget or len(batch) == 1
        assert size is None or len(batch) <= size
        if following and len(batch) != size:
            assert tokens([lengths[position] for position in (*batch, following[0])], packed) > budget


def tokens(lengths: list[int], packed: bool) -> int:
    return sum(lengths) if packed else max(lengths) * len(lengths)


@given(st.integers(0, 400), st.integers(1, 60), st.data())
def test_windows_cover_the_text_and_overlap_enough(num_tokens: int, capacity: int, data) -> None:
    overlap = data.draw(st.integers(0, capacity - 1))
    starts = window_starts(num_tokens, capacity, overlap)
    covered = {token for start in starts for token in range(start, min(start + capacity, num_tokens))}
    assert covered == set(range(num_tokens))
    assert starts[0] == 0
    assert all(0 < later - earlier <= capacity - overlap for earlier, later in zip(starts, starts[1:], strict=False))
    if len(starts) > 1:
        assert starts[-1] + capacity == num_tokens  # the last window is full

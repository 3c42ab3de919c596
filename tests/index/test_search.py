"""Search on real-valued vectors: against float64, in every form they are kept in, exact and approximate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.errors import InputError, StoreError
from colbert_integrations.index import memory, rows, scan
from colbert_integrations.index.checks import candidate_count
from colbert_integrations.index.layout import Layout, ReadyQueries
from colbert_integrations.index.quantization import PackedBits, decode_int8, encode_int8
from colbert_integrations.index.segment import Batch, Segment, View
from colbert_integrations.scoring import StackedQueries
from colbert_integrations.scoring.reference import reference_maxsim
from stores import brute_force, dyadic, fill, found, units

FP32, FP16 = torch.finfo(torch.float32).eps, torch.finfo(torch.float16).eps


def named(embeddings: TokenEmbeddings) -> list[str]:
    return [f"d{number:04}" for number in range(len(embeddings))]


def bound(dtype: str, query_tokens: int, dim: int) -> float:
    """What rounding unit vectors to the dtype, and then summing in float32, can err."""
    rounding = FP16 / 2 * dim**0.5 if dtype == "float16" else 0.0
    return query_tokens * (rounding + FP32 * dim)


# -------------------------------------------------------------------------------------------------------------- exact


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    query_lengths=st.lists(st.integers(1, 33), min_size=1, max_size=4),
    dim=st.sampled_from([1, 3, 48, 64, 96, 128]),
    dtype=st.sampled_from(["float16", "float32"]),
    k=st.integers(1, 12),
    rows=st.sampled_from([1, 7, 64]),
    seed=st.integers(0, 99),
)
def test_exact_search_equals_float64(
    lengths: list[int], query_lengths: list[int], dim: int, dtype: Any, k: int, rows: int, seed: int
) -> None:
    documents, queries = units(seed, *lengths, dim=dim), units(seed + 100, *query_lengths, dim=dim)
    expected = reference_maxsim(queries, documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_FEWEST_ROWS", 50)
        patch.setattr(memory, "_MOST_ROWS", 50)
        patch.setattr(ReadyQueries, "block_rows", rows)  # whatever scores them
        patch.setattr(scan, "_MOST_WAITING", 5 * rows)
        store = MemoryStore(dtype)
        store.upsert(named(documents), documents)
        hits = store.search(queries, k)
    for row, its_hits, length in zip(expected.tolist(), hits, query_lengths, strict=True):
        tolerance = bound(dtype, length, dim)
        assert len(its_hits) == min(k, len(lengths))
        best = sorted(row, reverse=True)[: len(its_hits)]
        assert [hit.score for hit in its_hits] == pytest.approx(best, abs=tolerance, rel=0)
        assert all(hit.score == pytest.approx(row[int(hit.id[1:])], abs=tolerance, rel=0) for hit in its_hits)


def test_a_score_is_the_same_alone_and_in_a_batch_of_queries() -> None:
    documents, queries = units(1, *range(5, 90), dim=64), units(2, 32, 8, 17, 32, dim=64)
    store = MemoryStore("float32")
    store.upsert(named(documents), documents)
    together = store.search(queries, 85)
    for number, hits in enumerate(together):
        alone = {hit.id: hit.score for hit in store.search(queries[number : number + 1], 85)[0]}
        assert {hit.id: hit.score for hit in hits} == pytest.approx(alone, abs=bound("float32", 32, 64), rel=0)


@pytest.mark.parametrize(
    "options",
    [{}, {"nbits": 8}, {"nbits": 4}, {"search": "centroids"}, {"nbits": 8, "search": "codes"}],
)
def test_many_queries_take_no_more_memory_than_some(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    store, documents, queries = MemoryStore(**options), units(1, *[5] * 60), units(2, *[4] * 30, 9, 1)
    store.upsert(named(documents), documents)
    expected = store.search(queries, 3, candidates=20)
    stacks, real = list[int](), StackedQueries.__init__

    def stack(self: Any, some: TokenEmbeddings, *rest: Any) -> None:
        stacks.append(len(some.values))
        real(self, some, *rest)

    monkeypatch.setattr(StackedQueries, "__init__", stack)
    monkeypatch.setattr(memory, "QUERY_TOKENS", 8)
    found = store.search(queries, 3, candidates=20)
    assert [[hit.id for hit in hits] for hits in found] == [[hit.id for hit in hits] for hits in expected]
    assert max(stacks) == 9  # a query that is longer stands alone


@pytest.mark.parametrize("step", [1, 2, 3, 7, 39])
def test_few_among_many_are_found_block_by_block(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReadyQueries, "block_rows", 16)
    monkeypatch.setattr(rows, "GATHERED_ROWS", 8)
    documents = dict(zip(named(vectors := dyadic(1, *[1, 4, 2, 9, 3] * 8)), vectors, strict=True))
    store, queries = MemoryStore("float32"), dyadic(2, 3, 5)
    fill(store, documents, [{"wanted": number % step == 0} for number in range(40)])
    some = dict(list(documents.items())[::step])
    assert found(store, queries, 50, filter={"wanted": True}) == brute_force(some, queries, 50)


# -------------------------------------------------------------------------------------------------------------- codes


@pytest.mark.parametrize("dim", [1, 5, 48, 128])
@pytest.mark.parametrize("nbits", [4, 2])
def test_a_vector_survives_rounding_to_few_bits(nbits: int, dim: int) -> None:
    bits = PackedBits(nbits, dim)
    vectors = units(3, 500, dim=dim).values * 3
    packed = bits.encode(vectors)
    assert packed.shape == (500, -(-dim * nbits // 8) + 2)
    back = bits.decode(packed)
    assert torch.allclose(back.norm(dim=1), torch.full((500,), 3.0), rtol=2 * FP16)  # the scale keeps the norm
    if dim >= 48:
        # Max 1960, table I: the mean square error of 4 and 16 levels on a normal variable, 0.1175 and 0.009497;
        # bringing the norm back costs about as much again where it was a quarter of that.
        error = (back - vectors).square().sum(1).mean() / 9
        assert error < {2: 0.1175, 4: 0.009497}[nbits] * 1.15
        assert error > {2: 0.1175, 4: 0.009497}[nbits] * 0.85


@pytest.mark.parametrize("nbits", [4, 2])
def test_a_coordinate_gets_the_nearest_level(nbits: int) -> None:
    """But for what is nearer to the middle between two than float16 can tell."""
    bits, vectors = PackedBits(nbits, 128), units(3, 500, dim=128).values
    given = vectors.double() @ bits.rotation.double()
    given *= 128**0.5 / given.norm(dim=1, keepdim=True)
    chosen = bits.unpack(bits.encode(vectors))[0].double()
    nearest = (given[..., None] - bits.levels.double()).abs().amin(-1)
    # Levels are rounded to float16 after the middles between them were taken, and so is what is looked up.
    assert ((given - chosen).abs() - nearest <= 2 * FP16 * given.abs()).all()


def test_the_lowest_bits_hold_the_first_dimension() -> None:
    bits = PackedBits(2, 4)
    levels = torch.tensor([[-1.5104, -0.4528, 0.4528, 1.5104]])
    packed = bits.encode(levels @ bits.rotation.T)
    assert packed[0, 0] == 0b11_10_01_00
    assert torch.allclose(bits.decode(packed) @ bits.rotation, levels, rtol=2 * FP16)


def test_the_rotation_is_the_same_everywhere() -> None:
    rotation = PackedBits(4, 3).rotation
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=8 * FP32)
    # numpy.random.RandomState(0).standard_normal((3, 3)), Gram-Schmidt by hand on its first column.
    first = torch.tensor([1.764052345967664, 2.240893199201458, 0.9500884175255894])
    assert torch.allclose(rotation[:, 0], first / first.norm(), atol=8 * FP32)


def test_int8_rounds_to_the_nearest_step_of_the_document() -> None:
    values = torch.tensor([[1.27, 0.004], [-0.5, 0.0], [0.254, -0.001]])
    codes, steps = encode_int8(values, torch.tensor([2, 1]))
    assert steps.tolist() == pytest.approx([0.01, 0.002])
    assert codes.tolist() == [[127, 0], [-50, 0], [127, 0]]
    back = decode_int8(codes, steps, torch.tensor([2, 1]))
    assert torch.allclose(back, torch.tensor([[1.27, 0.0], [-0.5, 0.0], [0.254, 0.0]]))


def test_a_document_of_zeros_has_codes() -> None:
    for nbits in (8, 4, 2):
        store = MemoryStore(nbits=nbits)  # type: ignore[arg-type]
        store.upsert(["zero", "one"], TokenEmbeddings.from_list([torch.zeros(2, 8), torch.eye(8)]))
        hits = store.search(TokenEmbeddings.from_list([torch.eye(8)]))[0]
        assert [hit.id for hit in hits] == ["one", "zero"]
        assert hits[1].score == 0


@pytest.mark.parametrize("nbits", [8, 4, 2])
def test_exact_search_over_codes_is_maxsim_of_what_they_stand_for(nbits: Any) -> None:
    documents, queries = units(5, *range(1, 60), dim=48), units(6, 32, 7, dim=48)
    store = MemoryStore(nbits=nbits)
    store.upsert(named(documents), documents)
    kept = [document.embeddings for document in store.get(named(documents), embeddings=True)]
    expected = reference_maxsim(queries, [matrix for matrix in kept if matrix is not None])
    for row, hits in zip(expected.tolist(), store.search(queries, 59), strict=True):
        assert {hit.id: hit.score for hit in hits} == pytest.approx(
            dict(zip(named(documents), row, strict=True)), abs=bound("float32", 32, 48), rel=0
        )


@pytest.mark.parametrize("nbits", [8, 4, 2])
def test_candidates_by_codes_are_scored_by_the_originals(nbits: Any) -> None:
    documents, queries = units(7, *[12] * 300, dim=64), units(8, 32, 32, dim=64)
    store = MemoryStore("float32", nbits=nbits, keep_originals=True)
    store.upsert(named(documents), documents)
    exact, some = store.search(queries, 300), store.search(queries, 10, search="codes", candidates=100)
    for all_hits, hits in zip(exact, some, strict=True):
        true = {hit.id: hit.score for hit in all_hits}
        assert {hit.id: hit.score for hit in hits} == pytest.approx(
            {hit.id: true[hit.id] for hit in hits}, abs=bound("float32", 32, 64), rel=0
        )
        assert len({hit.id for hit in hits} & {hit.id for hit in all_hits[:10]}) >= (10 if nbits == 8 else 7)


def test_rounding_to_codes_again_changes_nothing() -> None:
    documents = units(9, 5, 8, 3, dim=32)
    for nbits in (8, 4, 2):
        first, second = MemoryStore(nbits=nbits), MemoryStore(nbits=nbits)  # type: ignore[arg-type]
        first.upsert(["a", "b", "c"], documents)
        second.copy_from(first)
        queries = units(10, 4, dim=32)
        assert [hit.score for hit in second.search(queries)[0]] == pytest.approx(
            [hit.score for hit in first.search(queries)[0]], abs=4 * FP16 * 4, rel=0
        )


# ---------------------------------------------------------------------------------------------------------- candidates


@settings(max_examples=10, deadline=None)
@given(rows=st.integers(1, 60), segment=st.sampled_from([20, 50, 10**4]), candidates=st.integers(1, 39))
@pytest.mark.parametrize("nbits", [None, 8, 4])
def test_candidates_of_many_segments_score_as_in_an_exact_search(
    nbits: Any, rows: int, segment: int, candidates: int
) -> None:
    documents, queries = units(7, *[1, 5, 9, 3] * 10, dim=32), units(8, 4, 7, dim=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "_FEWEST_ROWS", segment)
        patch.setattr(memory, "_MOST_ROWS", segment)
        patch.setattr(ReadyQueries, "block_rows", rows)
        store = MemoryStore("float32", nbits=nbits)
        store.upsert(named(documents), documents)
        exact = store.search(queries, 40)
        some = store.search(queries, candidates, search="centroids", candidates=candidates)
    for scores, hits in zip(({hit.id: hit.score for hit in all_of} for all_of in exact), some, strict=True):
        assert len(hits) == candidates
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=7 * 32 * FP32, rel=0)


def test_candidates_are_copied_together_up_to_a_size_and_on_one_device() -> None:
    views = []
    for device in ("cpu", "cpu", "meta", "meta", "cpu"):
        segment = Segment(Layout(4), Layout(4).empty(30, device))
        segment.append(Batch([*"abc"], [None] * 3, [{}] * 3, [3, 4, 5], {"vectors": torch.empty(12, 4, device=device)}))
        views.append(View(segment, torch.ones(3, dtype=torch.bool)))
    numbers = {id(view.segment): number for number, view in enumerate(views)}

    def places(rows: int) -> list[list[tuple[int, int]]]:
        parts = scan._together(views, [0, 2, 4, 7, 9, 10, 14], rows)
        return [[(numbers[id(segment)], position) for segment, position in some] for some in parts]

    assert places(100) == places(28) == [[(0, 0), (0, 2), (1, 1)], [(2, 1), (3, 0), (3, 1)], [(4, 2)]]
    assert places(9) == places(8) == [[(0, 0), (0, 2)], [(1, 1)], [(2, 1)], [(3, 0), (3, 1)], [(4, 2)]]
    assert places(4) == places(1) == [[(0, 0)], [(0, 2)], [(1, 1)], [(2, 1)], [(3, 0)], [(3, 1)], [(4, 2)]]
    assert list(scan._together(views, [], 100)) == []


def test_more_candidates_never_find_worse() -> None:
    documents, queries = units(14, *[15] * 500, dim=16), units(15, 8, dim=16)
    store = MemoryStore("float32")
    store.upsert(named(documents), documents)
    scores = [
        sum(hit.score for hit in store.search(queries, 10, search="centroids", candidates=candidates)[0])
        for candidates in (10, 30, 100, 499)
    ]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(sum(hit.score for hit in store.search(queries, 10)[0]), abs=1e-4)


@pytest.mark.parametrize(
    ("mode", "k", "asked", "number"),
    [
        ("codes", 3, None, 20),
        ("codes", 30, None, 60),
        ("centroids", 3, None, 500),
        ("centroids", 300, None, 1500),
        ("centroids", 3, 7, 7),
        ("codes", 9, 7, 9),
    ],
)
def test_a_stage_hands_on_as_many_as_the_documentation_says(mode: Any, k: int, asked: int | None, number: int) -> None:
    assert candidate_count(mode, k, asked) == number


def test_a_store_may_prefer_a_candidate_stage() -> None:
    documents = units(16, *[5] * 50)
    store = MemoryStore("float32", search="centroids", candidates=10)
    store.upsert(named(documents), documents)
    assert store.search(documents[:1], 3) == store.search(documents[:1], 3, search="centroids", candidates=10)


def test_first_vectors_for_which_there_is_no_memory_decide_no_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()

    def full(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "_new_segment", full)
        with pytest.raises(MemoryError):
            store.upsert(["a"], dyadic(1, 3))
    assert (store.dim, store.count()) == (None, 0)
    store.upsert(["a"], TokenEmbeddings.from_list([torch.eye(3)]))
    assert store.dim == 3


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "bfloat16"}, "dtype must be"),
        ({"nbits": 3}, "nbits must be"),
        ({"keep_originals": True}, "goes with nbits"),
        ({"search": "codes"}, "needs codes"),
        ({"search": "magic"}, "search must be"),
        ({"candidates": -1}, "candidates must be"),
    ],
)
def test_impossible_stores_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        MemoryStore(**options)


def test_documents_are_moved_in_batches_of_about_so_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, batches, upsert = MemoryStore(), MemoryStore(), list[list[int]](), MemoryStore.upsert
    source.upsert(named(documents := units(3, 4, 4, 1, 9, 2, 2)), documents)

    def seen(store: MemoryStore, ids: Any, embeddings: TokenEmbeddings, *others: Any) -> None:
        batches.append(embeddings.lengths)
        upsert(store, ids, embeddings, *others)

    monkeypatch.setattr(MemoryStore, "upsert", seen)
    assert target.copy_from(source, batch_tokens=8) == 6
    assert batches == [[4, 4], [1, 9], [2, 2]]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 2 * 10),
        ({"dtype": "float32"}, 4 * 10),
        ({"nbits": 8}, 10),
        ({"nbits": 4}, 5 + 2),  # two dimensions a byte, and a scale in float16
        ({"nbits": 2}, 3 + 2),
        ({"nbits": 2, "keep_originals": True}, 3 + 2 + 2 * 10),
    ],
    ids=str,
)
def test_a_store_says_what_a_vector_costs(options: dict[str, Any], size: int) -> None:
    store = MemoryStore(**options)
    assert (store.bytes_per_token, store.nbits) == (0, options.get("nbits"))
    store.upsert(["a"], units(1, 3, dim=10))
    assert (store.bytes_per_token, store.num_tokens) == (size, 3)


def test_no_documents_leave_the_dimension_open() -> None:
    store = MemoryStore()
    store.upsert([], TokenEmbeddings.from_list([], 3))
    assert (store.dim, store.count()) == (None, 0)
    store.upsert(["a"], units(1, 2, dim=8))
    assert store.dim == 8


def test_of_two_writers_at_once_the_first_decides_on_the_dimension(monkeypatch: pytest.MonkeyPatch) -> None:
    store, encode = MemoryStore(), Layout.encode

    def overtaken(layout: Layout, embeddings: TokenEmbeddings, names: list[str]) -> dict[str, torch.Tensor]:
        monkeypatch.undo()
        store.upsert(["quick"], units(1, 2, dim=3))
        return encode(layout, embeddings, names)

    monkeypatch.setattr(Layout, "encode", overtaken)
    with pytest.raises(InputError, match="vectors of dim 3, not 8"):
        store.upsert(["slow"], units(1, 2, dim=8))
    assert (store.dim, store.ids()) == (3, ["quick"])


def test_a_store_is_closed_at_the_end_of_a_with_statement_and_can_be_printed() -> None:
    with MemoryStore(nbits=4) as store:
        assert store.count() == 0
    with pytest.raises(StoreError, match="closed"):
        store.count()
    assert repr(store) == "MemoryStore(nbits=4, closed)"


def test_codes_can_not_be_searched_where_there_are_none() -> None:
    store = MemoryStore()
    store.upsert(["a"], units(1, 2))
    with pytest.raises(InputError, match="make the store with nbits"):
        store.search(units(2, 2), search="codes")


def test_a_value_too_large_for_float16_is_refused() -> None:
    large = TokenEmbeddings.from_list([torch.full((1, 4), 70000.0)])
    with pytest.raises(InputError, match="dtype='float32'"):
        MemoryStore().upsert(["a"], large)
    store = MemoryStore("float32")
    store.upsert(["a"], large)
    assert store.search(TokenEmbeddings.from_list([torch.ones(1, 4)]))[0][0].score == 280000


@pytest.mark.gpu
def test_a_store_larger_than_its_share_of_the_gpu_streams() -> None:
    documents, queries = units(20, *[100] * 2000, dim=128), units(21, 32, 32, dim=128)
    here, there = MemoryStore(), MemoryStore(device="cuda", device_bytes=10_000_000)
    for store in (here, there):
        store.upsert(named(documents), documents)
    for expected, hits in zip(here.search(queries, 20), there.search(queries, 20), strict=True):
        assert [hit.id for hit in hits] == [hit.id for hit in expected]
        assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-3)
    assert {view.segment.device.type for view in there._now().views} == {"cpu", "cuda"}


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{"search": "centroids"}, {"nbits": 8, "search": "codes"}, {"nbits": 4}],
    ids=str,
)
def test_the_gpu_finds_what_the_cpu_finds(options: dict[str, Any]) -> None:
    documents, queries = units(22, *[50] * 3000, dim=96), units(23, 32, 20, dim=96)
    here, there = MemoryStore(**options), MemoryStore(**options, device="cuda")
    for store in (here, there):
        store.upsert(named(documents), documents)
    for expected, hits in zip(here.search(queries, 10), there.search(queries, 10), strict=True):
        assert len({hit.id for hit in hits} & {hit.id for hit in expected}) >= 9


@pytest.mark.parametrize(
    ("search", "options"),
    [
        ("centroids", {}),
        ("centroids", {"nbits": 4}),
        ("codes", {"nbits": 8}),
        ("codes", {"nbits": 2, "keep_originals": True}),
    ],
)
def test_a_candidate_stage_looks_only_among_what_may_be_found(search: Any, options: dict[str, Any]) -> None:
    store = MemoryStore(**options)
    matrices = {f"d{number}": matrix for number, matrix in enumerate(units(1, *[6] * 90))}
    fill(store, matrices, [{"n": number % 3} for number in range(90)])
    store.delete(["d1"])
    allowed = [f"d{number}" for number in range(1, 90, 3) if number != 1]
    query = TokenEmbeddings.from_list([matrices["d0"]])  # what the filter leaves out is the best
    exact = dict(found(store, query, 90)[0])
    for restriction in (
        {"filter": {"n": 1}},
        {"filter": lambda document: document.metadata["n"] == 1},
        {"ids": allowed},
    ):
        (hits,) = found(store, query, 5, search=search, candidates=10, **restriction)
        assert len(hits) == 5
        assert {name for name, _ in hits} <= set(allowed)
        assert [score for _, score in hits] == pytest.approx([exact[name] for name, _ in hits], abs=1e-5)

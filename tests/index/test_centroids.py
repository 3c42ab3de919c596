"""The centroid candidate stage: its lists and estimates against loops, and what a search finds by them."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from colbert_integrations import MemoryStore, TokenEmbeddings
from colbert_integrations.errors import DamagedIndexError, InputError, StoreError
from colbert_integrations.index import centroids as module
from colbert_integrations.index import memory, persistence, scan
from colbert_integrations.index.centroids import Centroids, InvertedLists, Probes, train
from colbert_integrations.index.layout import Layout
from colbert_integrations.index.rows import PackedRows
from colbert_integrations.index.state import State, sample_of
from stores import fill, found, units

FP32 = torch.finfo(torch.float32).eps


def named(documents: TokenEmbeddings) -> list[str]:
    return [f"d{number:04}" for number in range(len(documents))]


def rows_of(documents: TokenEmbeddings, room: int = 0) -> PackedRows:
    layout = Layout(documents.dim, "float32")
    rows = PackedRows(layout, layout.empty(len(documents.values) + room, "cpu"))
    rows.write(layout.encode(documents), documents.lengths)
    return rows


def topical(seed: int, documents: int, tokens: int = 12, topics: int = 40, dim: int = 32) -> TokenEmbeddings:
    """Documents of two topics each, every vector near the direction of one: what text is like."""
    random = torch.Generator().manual_seed(seed)
    directions = torch.randn(topics, dim, generator=torch.Generator().manual_seed(1))
    which = torch.randint(topics, (documents, 2), generator=random)
    of = which.gather(1, torch.randint(2, (documents, tokens), generator=random))  # (documents, tokens)
    vectors = normalize(directions, dim=-1)[of] + 0.1 * torch.randn(documents, tokens, dim, generator=random)
    return TokenEmbeddings.from_list(list(normalize(vectors, dim=-1)))


# ----------------------------------------------------------------------------------------------------------- centroids


def test_centroids_are_the_means_of_what_is_around_them() -> None:
    directions = torch.eye(4)
    sample = torch.cat([directions * length for length in (1.0, 0.5, 3.0)] * 16)  # (192, 4)
    found = train(sample, 192)
    assert sum(found.sizes) == len(found) > 4
    for vector in directions:
        (number,) = found.nearest(vector[None]).tolist()
        assert torch.equal(found.means[number], 1.5 * vector)


@pytest.mark.parametrize(("rows", "sample", "expected"), [(1, 1, 1), (7, 7, 1), (16, 16, 2), (10**4, 4000, 300)])
def test_there_are_as_many_as_a_store_needs_and_a_sample_can_tell(rows: int, sample: int, expected: int) -> None:
    made = train(units(1, sample, dim=8).values, rows)
    assert expected <= len(made) <= expected + len(made.sizes)
    assert torch.equal(made.means, train(units(1, sample, dim=8).values, rows).means)


def test_a_vector_belongs_to_the_nearest_centroid_of_the_nearest_group() -> None:
    values = units(3, 900, dim=16).values
    made = train(values[:600], 600)
    firsts = [sum(made.sizes[:number]) for number in range(len(made.sizes))]
    assert len(made.sizes) > 3
    assert torch.allclose(made.groups.norm(dim=1), torch.ones(len(made.sizes)), rtol=0, atol=16 * FP32)
    for vector, number in zip(values.double(), made.nearest(values).tolist(), strict=True):
        group = int((made.groups.double() @ vector).argmax())
        among = normalize(made.means.double(), dim=-1)[firsts[group] : firsts[group] + made.sizes[group]] @ vector
        assert firsts[group] <= number < firsts[group] + made.sizes[group]
        assert float(among[number - firsts[group]]) >= float(among.max()) - 16 * FP32


# --------------------------------------------------------------------------------------------------------------- lists


def test_a_group_without_centroids_is_nobodys() -> None:
    directions = torch.eye(3)
    centroids = Centroids(torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 0, 1.0]]), directions, (2, 0, 1), 9)
    near_the_empty_one = torch.tensor([[0.2, 1.0, 0.0], [0.0, 1.0, 0.2], [0.2, 1.0, 0.1], [1.0, 0.0, 0.0]])
    assert centroids.nearest(near_the_empty_one).tolist() == [1, 2, 1, 0]


def test_texts_that_say_the_same_are_no_obstacle() -> None:
    store, documents = MemoryStore("float32"), units(3, *[2] * 40)
    same = TokenEmbeddings.from_list([documents[0]] * 600)
    store.upsert(named(same), same)
    for number in range(1, 40):
        store.upsert([f"other{number}"], documents[number : number + 1])
        (hits,) = store.search(documents[:1], 1, search="centroids", candidates=50)
        assert hits[0].id in named(same)
    assert min(store._centroids.sizes) == 0  # type: ignore[union-attr]


def by_loops(centroids: Centroids, documents: TokenEmbeddings) -> list[list[int]]:
    near = [set(centroids.nearest(matrix).tolist()) for matrix in documents]
    return [[n for n, some in enumerate(near) if number in some] for number in range(len(centroids))]


def lists_in(lists: InvertedLists) -> list[list[int]]:
    bounds = lists.bounds.tolist()
    return [lists.members[start:stop].tolist() for start, stop in zip(bounds, bounds[1:], strict=False)]


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30),
    steps=st.lists(st.integers(1, 12), max_size=3),
    block=st.integers(1, 40),
)
def test_lists_name_each_document_near_a_centroid_once(lengths: list[int], steps: list[int], block: int) -> None:
    documents = units(5, *lengths, dim=8)
    centroids = train(units(6, 200, dim=8).values, 200)
    rows, known = rows_of(documents), None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CELLS", block * documents.dim)
        for count in [*sorted(min(step, len(lengths)) for step in steps), len(lengths)]:
            known = InvertedLists.of(centroids, rows, count, known)
            assert known.documents == count
            assert lists_in(known) == by_loops(centroids, documents[:count])
            assert known.is_sound(len(centroids))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 5), st.integers(1, 40), st.integers(0, 10**6)
)
def test_estimates_are_what_the_lists_say(lengths: list[int], probes: int, cells: int, seed: int) -> None:
    documents, queries = units(seed, *[3] * 25, dim=8), units(seed + 1, *lengths, dim=8)
    centroids = train(documents.values, 75)
    lists = InvertedLists.of(centroids, rows_of(documents), 25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PROBES", probes)
        patch.setattr(module, "_CELLS", cells)
        estimates = [lists.score(probes) for probes in centroids.probe(queries)]
    members = by_loops(centroids, documents)
    for query, row in zip(queries, map(torch.from_numpy, estimates), strict=True):
        assert row.shape == (25,)
        expected = torch.zeros(25, dtype=torch.float64)
        for token in query.double():
            similarities = centroids.means.double() @ token
            best = similarities.argsort(descending=True).tolist()[: probes + 1]
            for number in range(25):
                near = [float(similarities[place]) for place in best[:probes] if number in members[place]]
                # In none of them: no nearer than the best of the others, or the last one where there are no others.
                expected[number] += max(near, default=float(similarities[best[-1]])) - float(similarities[best[-1]])
        assert torch.allclose(row.double(), expected, rtol=0, atol=64 * FP32 * max(1, len(query)))


def test_probes_are_as_the_store_is() -> None:
    centroids = train(units(1, 8, dim=8).values, 8)
    assert len(centroids) == 1
    first, second = centroids.probe(units(2, 3, 1, dim=8))
    assert isinstance(first, Probes)
    assert (first.lists.tolist(), first.gains.tolist()) == ([[0]] * 3, [[0.0]] * 3)
    assert (second.lists.tolist(), second.gains.tolist()) == ([[0]], [[0.0]])


def test_a_document_in_several_lists_counts_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PROBES", 2)
    centroids = Centroids(torch.tensor([[0.9, 0.0], [0.5, 0.0], [0.2, 0.0]]), torch.tensor([[1.0, 0.0]]), (3,), 9)
    members, bounds = (
        [1, 2, 0, 1, 2],
        [0, 1, 3, 5],
    )  # 1 is near the first, 2 and 0 near the second, 1 and 2 near the last
    lists = InvertedLists(3, torch.tensor(members, dtype=torch.int32), torch.tensor(bounds, dtype=torch.int32))
    (probes,) = centroids.probe(TokenEmbeddings.from_list([torch.tensor([[1.0, 0.0], [-1.0, 0.0]])]))
    assert probes.lists.tolist() == [[1, 0], [1, 2]]
    # First token: 0.5 - 0.2 for 0 and 2, 0.9 - 0.2 for 1. Second one: -0.5 + 0.9 for 0, -0.2 + 0.9 for 1 and 2.
    assert lists.score(probes).tolist() == pytest.approx([0.7, 1.4, 1.0], abs=4 * FP32, rel=0)


# -------------------------------------------------------------------------------------------------------------- search


def store_of(documents: TokenEmbeddings, **options: Any) -> MemoryStore:
    store = MemoryStore(**options)
    store.upsert(named(documents), documents)
    return store


def test_a_document_is_found_among_many_and_scored_exactly() -> None:
    documents = units(12, *[20] * 400)
    store = store_of(documents, dtype="float32")
    for wanted in (0, 17, 399):
        hit = store.search(documents[wanted : wanted + 1], 1, search="centroids", candidates=20)[0][0]
        assert (hit.id, hit.score) == (f"d{wanted:04}", pytest.approx(20, abs=400 * FP32, rel=0))


@pytest.mark.parametrize("options", [{}, {"nbits": 8}, {"nbits": 4}, {"nbits": 2, "keep_originals": True}], ids=str)
def test_few_candidates_hold_nearly_all_that_an_exact_search_finds(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 1000)
    documents, queries = topical(2, 600), topical(3, 20)
    store = store_of(documents, **options)
    assert len(store._now().views) > 2
    exact = found(store, queries, 10)
    some = found(store, queries, 10, search="centroids", candidates=60)
    shared = sum(
        len({name for name, _ in one} & {name for name, _ in two}) for one, two in zip(exact, some, strict=True)
    )
    assert shared >= 0.97 * 200  # 60 of 600 at random: 0.1
    for one, two in zip(exact, some, strict=True):
        scores = dict(one)
        assert [score for name, score in two if name in scores] == [scores[name] for name, _ in two if name in scores]
    alone = [found(store, queries[n : n + 1], 10, search="centroids", candidates=60)[0] for n in range(20)]
    assert [[name for name, _ in one] for one in alone] == [[name for name, _ in one] for one in some]


def test_lists_keep_up_with_what_comes_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    store, documents = MemoryStore("float32"), units(13, *[6] * 60)
    store.upsert(named(documents)[:30], documents[:30])
    trained = Counter[int]()
    monkeypatch.setattr(memory, "train", lambda sample, rows: trained.update([rows]) or train(sample, rows))
    assert store.search(documents[:1], 1, search="centroids", candidates=5)[0][0].id == "d0000"
    store.upsert(named(documents)[30:], documents[30:])
    assert store.search(documents[59:], 1, search="centroids", candidates=5)[0][0].id == "d0059"
    store.upsert(["d0059"], documents[:1])
    store.delete(["d0000"])
    assert store.search(documents[:1], 1, search="centroids", candidates=5)[0][0].id == "d0059"
    store.compact()
    assert store.search(documents[:1], 1, search="centroids", candidates=5)[0][0].id == "d0059"
    assert trained == {180: 1}


def test_a_store_that_has_outgrown_its_centroids_gets_new_ones() -> None:
    store, documents = MemoryStore("float32"), units(13, *[6] * 200)
    store.upsert(named(documents)[:40], documents[:40])
    counts = []
    for count in (40, 160, 161, 200):
        store.upsert(named(documents)[:count], documents[:count])
        store.compact()
        (hits,) = store.search(documents[count - 1 : count], 1, search="centroids", candidates=count // 2)
        assert hits[0].id == f"d{count - 1:04}"
        assert store._centroids is not None
        counts.append(store._centroids.rows)
    assert counts == [240, 240, 966, 966]


@pytest.mark.parametrize("named_mode", [True, False])
def test_what_was_prepared_is_not_made_by_a_search(
    named_mode: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 300)
    options: dict[str, Any] = {} if named_mode else {"search": "centroids"}
    store = store_of(topical(2, 90), candidates=9, **options)
    store.prepare("centroids" if named_mode else None)
    monkeypatch.setattr(Centroids, "nearest", None)
    monkeypatch.setattr(memory, "train", None)
    hits = found(store, topical(3, 5), 3, search="centroids")
    store.save(tmp_path)
    assert found(MemoryStore.load(tmp_path), topical(3, 5), 3, search="centroids") == hits


@pytest.mark.parametrize("mode", ["exact", "codes", "centroids"])
def test_nothing_is_prepared_where_a_search_looks_at_everything(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "make_lists", None)
    MemoryStore(nbits=4, search=mode).prepare()
    store = store_of(units(1, *[2] * 500), nbits=4, search=mode)
    store.prepare()
    if mode == "centroids":
        fill(store, {"one more": torch.ones(1, 32)})
        with pytest.raises(TypeError, match="not callable"):
            store.prepare()


def test_what_can_not_be_prepared_is_refused() -> None:
    store = store_of(units(1, 2))
    for mode, said in (("fast", "search must be one of"), ("first_stage", "has no search='first_stage'")):
        with pytest.raises(InputError, match=said):
            store.prepare(mode)  # type: ignore[arg-type]
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.prepare()


def test_a_segment_keeps_the_lists_that_are_used_and_those_that_are_made() -> None:
    documents = units(6, 8, 8)
    (view,) = store_of(documents)._now().views
    old, used, new = (train(documents.values, 16) for _ in range(3))
    for centroids in (old, used):
        view.segment.lists(centroids, 1)
    kept = view.segment.lists(used, 2)
    made = view.segment.lists(new, 2)
    assert view.segment.lists(used, 2) is kept
    assert view.segment.lists(new, 1) is made
    assert view.segment.lists_if_made(old, 0) is None


@pytest.mark.parametrize("slow", ["train", "make_lists"])
def test_searches_go_on_with_outgrown_centroids_while_others_are_made(
    slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 100)
    store, documents = MemoryStore("float32", search="centroids", candidates=9), topical(5, 400)
    store.upsert(named(documents)[:40], documents[:40])
    store.prepare()
    old = store._centroids
    store.upsert(named(documents)[40:390], documents[40:390])
    begun, go_on, real, calls = threading.Event(), threading.Event(), getattr(memory, slow), Counter[str]()

    def held(*args: Any) -> Any:
        begun.set()
        assert go_on.wait(30)
        return real(*args)

    monkeypatch.setattr(memory, slow, held)
    in_between = memory.train
    monkeypatch.setattr(memory, "train", lambda *args: calls.update(["train"]) or in_between(*args))
    with ThreadPoolExecutor(2) as pool:
        preparing = pool.submit(store.prepare)
        assert begun.wait(30)
        waiting = pool.submit(store.prepare)
        store.upsert(named(documents)[390:], documents[390:])
        for wanted in (7, 170, 399):
            hits = store.search(documents[wanted : wanted + 1], 1)[0]
            assert [hit.id for hit in hits] == named(documents)[wanted : wanted + 1]
        assert store._centroids is old
        assert not preparing.done()
        assert not waiting.done()
        go_on.set()
        preparing.result(30)
        waiting.result(30)
    assert store._centroids is not old
    assert calls == {"train": 1}
    store.prepare()  # what came meanwhile
    monkeypatch.setattr(Centroids, "nearest", None)
    assert [hit.id for hit in store.search(documents[7:8], 1)[0]] == ["d0007"]


def test_a_store_that_is_closed_keeps_no_centroids(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(units(1, *[2] * 30), candidates=5)

    def closed_meanwhile(*args: Any) -> Centroids:
        store.close()
        return train(*args)

    monkeypatch.setattr(memory, "train", closed_meanwhile)
    with pytest.raises(StoreError, match="closed"):
        store.search(units(1, 2), search="centroids")
    assert store._centroids is None


def test_candidates_are_copied_a_bounded_number_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 100)
    store = store_of(units(1, *[3] * 60, 20, *[3] * 39), candidates=80)
    expected = found(store, units(2, 4), 80, search="centroids")
    sizes = list[list[int]]()
    real = scan.gather

    def spy(places: Any) -> Any:
        sizes.append([rows.length_of(position) for rows, position in places])
        return real(places)

    monkeypatch.setattr(scan, "gather", spy)
    monkeypatch.setattr(scan, "GATHERED_ROWS", 10)
    assert found(store, units(2, 4), 80, search="centroids") == expected
    assert {len(size) for size in sizes} <= {1, 2, 3}
    assert all(sum(size) <= 10 or len(size) == 1 for size in sizes)
    assert sum(map(len, sizes)) == 80


def test_a_sample_is_of_documents_that_are_there_at_even_distances() -> None:
    documents = TokenEmbeddings.from_list([torch.full((2, 4), float(number)) for number in range(100)])
    store = store_of(documents)
    store.delete(named(documents)[:10])
    state = store._now()
    assert sample_of(state, 1000)[:, 0].tolist() == [float(number) for number in range(10, 100) for _ in "ab"]
    assert sample_of(state, 20)[::2, 0].tolist() == [float(number) for number in range(10, 100, 10)]
    assert sample_of(state, 1)[:, 0].tolist() == [10.0, 10.0]


def test_a_sample_of_many_segments_is_at_even_distances_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 30)
    documents = TokenEmbeddings.from_list([torch.full((2, 4), float(number)) for number in range(100)])
    state = store_of(documents)._now()
    assert len(state.views) > 2
    assert sample_of(state, 20)[::2, 0].tolist() == [float(number) for number in range(0, 100, 10)]


# --------------------------------------------------------------------------------------------------------------- saved


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[MemoryStore, Path]:
    monkeypatch.setattr(memory, "_FEWEST_ROWS", 300)
    store = store_of(topical(2, 90))
    assert len(store._now().views) > 2
    store.search(topical(3, 1), 3, search="centroids", candidates=9)
    store.save(tmp_path)
    return store, tmp_path


def test_what_was_saved_is_not_made_again(saved: tuple[MemoryStore, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    store, folder = saved
    expected = found(store, topical(3, 5), 3, search="centroids", candidates=9)
    monkeypatch.setattr(Centroids, "nearest", None)
    monkeypatch.setattr(memory, "train", None)
    loaded = MemoryStore.load(folder)
    assert found(loaded, topical(3, 5), 3, search="centroids", candidates=9) == expected
    loaded._state = State(tuple(map(loaded._brought_here, loaded._now().views)), loaded.count())  # as to a GPU
    assert found(loaded, topical(3, 5), 3, search="centroids", candidates=9) == expected
    before = sorted(path.name for path in folder.iterdir())
    loaded.save(folder)
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_save_writes_the_lists_that_are_new_and_sweeps_those_of_old_centroids(
    saved: tuple[MemoryStore, Path],
) -> None:
    store, folder = saved
    (old,) = (path for path in folder.glob("*.safetensors") if len(path.stem) == 32)
    assert len(list(folder.glob(f"*.{old.name}"))) == len(store._now().views)
    fill(store, {f"new{number}": matrix for number, matrix in enumerate(topical(4, 500))})
    store.search(topical(3, 1), 3, search="centroids", candidates=9)
    store.save(folder)
    (new,) = (path for path in folder.glob("*.safetensors") if len(path.stem) == 32)
    assert new != old
    assert not list(folder.glob(f"*.{old.name}"))
    assert len(list(folder.glob(f"*.{new.name}"))) == len(store._now().views)
    again = MemoryStore.load(folder)
    assert found(again, topical(3, 5), 3, search="centroids", candidates=9) == found(
        store, topical(3, 5), 3, search="centroids", candidates=9
    )


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("members", lambda tensor: tensor + 10**6, "it holds no lists"),
        ("members", lambda tensor: tensor - 10**6, "it holds no lists"),
        ("bounds", lambda tensor: tensor.flip(0).clone(), "it holds no lists"),
        ("bounds", lambda tensor: tensor * 0, "it holds no lists"),
        ("bounds", lambda tensor: tensor[:-1].clone(), "it holds no lists"),
        ("means", lambda tensor: tensor[:1].clone(), "it does not hold the centroids"),
        ("means", lambda tensor: tensor[:, :1].clone(), "it does not hold the centroids"),
        ("groups", lambda tensor: tensor[:1].clone(), "it does not hold the centroids"),
        ("groups", lambda tensor: tensor.half(), "it does not hold the centroids"),
    ],
)
def test_lists_and_centroids_of_other_hands_are_damaged(
    saved: tuple[MemoryStore, Path], monkeypatch: pytest.MonkeyPatch, name: str, change: Any, said: str
) -> None:
    _, folder = saved
    path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    save_file({**tensors, name: change(tensors[name])}, path)
    monkeypatch.setattr(persistence, "_check_file", lambda *_: None)  # as of the same size, without checksums
    with pytest.raises(DamagedIndexError, match=f"{path.name} can't be read: {said}"):
        MemoryStore.load(folder)


def test_a_file_that_is_gone_or_was_changed_is_named(saved: tuple[MemoryStore, Path]) -> None:
    _, folder = saved
    for path in (path for path in sorted(folder.glob("*.safetensors")) if path.stem.count(".") or "-" not in path.stem):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DamagedIndexError, match=f"{path.name} is damaged: its checksum differs"):
            MemoryStore.load(folder)
        path.unlink()
        with pytest.raises(DamagedIndexError, match=f"{path.name} is missing"):
            MemoryStore.load(folder)
        path.write_bytes(content)
    MemoryStore.load(folder)

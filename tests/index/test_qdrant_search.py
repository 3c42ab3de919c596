"""Searching a Qdrant collection: the same as in memory for any documents and filters; candidate stages by name."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_index.core import MockEmbedding
from qdrant_client import models

from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, TokenEmbeddings
from colbert_integrations.errors import InputError
from colbert_integrations.qdrant import QdrantStore
from colbert_integrations.qdrant.numbers import around, is_plain, searchable
from colbert_integrations.qdrant.wire import Wire
from qdrant_server import shared_server
from stores import DIM, brute_force, by_grpc, dyadic, fill, found, on_server, units

QUERIES = dyadic(99, 3, 1, 5)

# --------------------------------------------------------------------------------------------- as in memory, whatever

NUMBERS = [0, 1, 1.0, -1, 0.5, 0.3, 0.1 + 0.2, 0.3000000000000001, 1e-30, -0.0, 10**15, 10**15 + 1, 1e15 + 2, 2**53]
NUMBERS += [2**53 + 1, float(2**53), 10**16, 1e16, 2**63, 2**64, 10**30, 1e30, 1e300, 10**400, 1732512345.1234562]
SCALARS = st.sampled_from([*NUMBERS, True, False, None, "", "a", "1", "\u0000 é 漢", "0.3"]) | st.floats(
    allow_nan=False, allow_infinity=False
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xy"), inner, max_size=2),
    max_leaves=5,
)
NAMES = ["a", "b c", 'quo"te', "back\\slash", "a.x", "a.x.y", "é", "", "a[0]"]
KEYS = st.sampled_from([*NAMES, "b c.x", "a[]", "a."])
METADATA = st.dictionaries(st.sampled_from([*NAMES, "a."]), VALUES, max_size=4)
RANGES = st.sampled_from(["$gt", "$gte", "$lt", "$lte"])
OPERANDS = st.sampled_from([*NUMBERS, float("inf"), -float("inf")]) | st.floats(allow_nan=False)
CONDITIONS = st.one_of(
    SCALARS,
    st.dictionaries(st.sampled_from(["$eq", "$ne"]), SCALARS, min_size=1),
    st.dictionaries(st.sampled_from(["$in", "$nin"]), st.lists(SCALARS, max_size=3), min_size=1),
    st.dictionaries(RANGES, OPERANDS, min_size=1, max_size=2),
)
PLAIN_FILTERS = st.dictionaries(KEYS, CONDITIONS, max_size=2)
FILTERS = st.recursive(
    PLAIN_FILTERS,
    lambda inner: (
        st.fixed_dictionaries({"$not": inner})
        | st.builds(
            lambda name, filters, more: {name: filters, **more},
            st.sampled_from(["$and", "$or"]),
            st.lists(inner, min_size=1, max_size=3),
            PLAIN_FILTERS,
        )
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def store() -> Iterator[QdrantStore]:
    with on_server(dtype="float32") as made:
        yield made


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(notes=[{"a": 0.1 + 0.2}, {"a": 0.3}, {}], filters=[{"a": {"$ne": 0.3}}, {"a": 0.1 + 0.2}], k=1, seed=0)
@example(notes=[{"a": 2**53 + 1}, {"a": float(2**53)}], filters=[{"a": 2**53}, {"a": {"$gt": 2**53}}], k=1, seed=0)
@example(notes=[{"a": [0.3, 1]}, {"a": [[0.3]]}], filters=[{"a": 0.3}, {"a": {"$gt": 0.3, "$lt": 0.5}}], k=1, seed=0)
@example(
    notes=[{"a": {"x": {"y": 1}}}, {"a": 1}, {"a": 2}, {"a": 0.3}, {"a": None}, {}],
    filters=[
        {"a.x.y": 1},
        {"a": {"$in": [3, 2, 1]}},
        {"a": {"$ne": 1}},
        {"a": {"$ne": 0.1 + 0.2}},
        {"a": {"$ne": None}},
        {"a": {"$ne": math.nan}},
        {"a": {"$lt": 10**400}},
        {"a": {"$nin": [1, 0.1 + 0.2, None]}},
    ],
    k=3,
    seed=0,
)
@example(notes=[{"a": {"": 1}}, {"a.": 1}, {}], filters=[{"a.": 1}, {"a.": {"$ne": 1}}], k=3, seed=0)
@example(
    notes=[{"a.x": 0.3, "a": {"x": 1}}, {"a.x": [0.1 + 0.2, 2]}, {"a": {"x": 0.1 + 0.2}}, {"a.x": None}, {}],
    filters=[
        {"a.x": 1},
        {"a.x": {"$in": [0.3, None]}},
        {"a.x": {"$ne": 0.3}},
        {"a.x": {"$nin": [0.1 + 0.2, 1]}},
        {"a.x": {"$gt": 0.3, "$lt": 1}},
    ],
    k=3,
    seed=0,
)
@example(
    notes=[
        {"a": 1},
        {"a": 0.3},
        {"a": 0.1 + 0.2},
        {"a": [1, 5]},
        {"a": [[9]]},
        {"a": "x"},
        {},
        {"a": 10**400},
        {"b": 1},
    ],
    filters=[
        {"$not": {"a": {"$gt": 0.3}}},
        {"$not": {"a": {"$gte": 0.1 + 0.2}}},
        {"$not": {"a": {"$lt": 1}}},
        {"$not": {"a": {"$lte": 10**16}}},
        {"$or": [{"a": {"$gt": 3}}, {"b": 1}]},
        {"$or": [{"a": {"$ne": 0.1 + 0.2}}, {"b": 1}]},
        {"$or": [{"a": {"$in": []}}, {"a": "x"}], "b": {"$ne": 1}},
        {"$or": [{'quo"te': 1}, {"a": 1}]},
        {"$not": {"$or": [{"a": 1}, {"$and": [{"b": 1}, {"a": {"$ne": "x"}}]}]}},
        {"$not": {}},
    ],
    k=3,
    seed=0,
)
@given(
    notes=st.lists(METADATA, min_size=1, max_size=12),
    filters=st.lists(FILTERS, min_size=1, max_size=4),
    k=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_documents_are_found_by_any_filter_as_in_memory(
    store: QdrantStore, notes: list[dict[str, Any]], filters: list[dict[str, Any]], k: int, seed: int
) -> None:
    matrices = list(dyadic(seed, *(1 + number % 4 for number in range(len(notes)))))
    documents = {f"d{number}": matrix for number, matrix in enumerate(matrices)}
    store.delete(store.ids())
    with MemoryStore("float32") as memory:
        for each in (store, memory):
            fill(each, documents, notes)
        # By their text: to Python 1 is 1.0 is True.
        kept = [[repr(document.metadata) for document in each.get(list(documents))] for each in (store, memory)]
        assert kept[0] == kept[1]
        for filter in filters:
            assert store.ids(filter) == memory.ids(filter), filter
            assert store.search(QUERIES, k, filter) == memory.search(QUERIES, k, filter), filter


@pytest.mark.parametrize("make", [on_server, by_grpc, lambda: QdrantStore(":memory:")], ids=["server", "grpc", "local"])
async def test_half_a_surrogate_pair_in_a_filter_is_what_no_document_has(make: Any) -> None:
    half, notes = "\ud800", [{"n": "x"}, {"n": 1}, {}]
    conditions: list[Any] = [half, {"$in": [half, "x"]}, {"$nin": [half, "x"]}, {"$ne": half}, {"$eq": half}]
    filters = [{"n": each} for each in conditions] + [{half: each} for each in ("x", None, {"$ne": "x"})]
    filters += [{"n." + half: "x"}, {"$or": [{"n": half}, {half: 1}, {"n": 1}]}, {"$not": {"n": half}}]
    with make() as made, MemoryStore() as memory:
        for each in (made, memory):
            fill(each, dict(zip("abc", dyadic(1, 2, 3, 1), strict=True)), notes)
        for filter in filters:
            assert made.ids(filter) == await made.aids(filter) == memory.ids(filter), filter
            hits = memory.search(QUERIES, 3, filter)
            assert made.search(QUERIES, 3, filter) == await made.asearch(QUERIES, 3, filter) == hits, filter
        await made.aclose()


def test_a_server_is_told_the_conditions(store: QdrantStore) -> None:
    store.delete(store.ids())
    fill(store, {"a": torch.ones(1, DIM)}, [{"n": 1}])
    before = len(shared_server().asked)
    assert store.ids({"n": {"$gt": 1}}) == []
    assert store.search(QUERIES[:1], 1, {"n": {"$gt": 1}}) == [[]]
    told = {"must": [{"key": 'metadata."n"', "range": {"gt": 1.0}}]}
    bodies = [asked.body for asked in shared_server().asked[before:]]
    assert [body.get("filter") or body["searches"][0]["filter"] for body in bodies] == [told, told]


def test_a_server_is_told_of_both_places_of_a_key(store: QdrantStore) -> None:
    store.delete(store.ids())
    fill(store, {"a": torch.ones(1, DIM)}, [{"loc.page": "x"}])
    before = len(shared_server().asked)
    assert store.ids({"loc.page": "x"}) == ["a"]
    assert store.ids({"loc.page": {"$nin": ["x", "y"]}}) == []
    parts = [
        {"key": path, "match": match}
        for path in ('metadata."loc.page"', 'metadata."loc"."page"')
        for match in ({"value": "x"}, {"any": ["x", "y"]})
    ]
    told = [asked.body["filter"] for asked in shared_server().asked[before:]]
    assert told == [{"must": [{"should": parts[::2]}]}, {"must": [{"must_not": parts[1::2]}]}]


def test_a_server_is_told_many_strings_in_one_condition(store: QdrantStore) -> None:
    store.delete(store.ids())
    fill(store, {"a": torch.ones(1, DIM), "b": torch.ones(1, DIM)}, [{"n": "299"}, {"n": 7}])
    before = len(shared_server().asked)
    many = [str(number) for number in range(300)]
    assert store.ids({"n": {"$in": many}}) == ["a"]
    assert store.ids({"n": {"$in": [*many, 7, "299"]}}) == ["a", "b"]
    assert store.ids({"n": {"$nin": many}}) == ["b"]
    one = {"key": 'metadata."n"', "match": {"any": many}}
    seven = {"key": 'metadata."n"', "range": {"gte": 7.0, "lte": 7.0}}
    told = [asked.body["filter"]["must"] for asked in shared_server().asked[before:]]
    assert told == [[one], [{"should": [one, seven]}], [{"must_not": [one]}]]


def test_a_server_is_told_what_filters_in_filters_ask(store: QdrantStore) -> None:
    store.delete(store.ids())
    fill(store, {"a": torch.ones(1, DIM), "b": torch.ones(1, DIM)}, [{"n": 1}, {"n": 3, "word": "x"}])
    before = len(shared_server().asked)
    assert store.ids({"$or": [{"n": {"$gt": 2}, "word": "x"}, {"word": "y"}]}) == ["b"]
    assert store.ids({"$not": {"n": {"$gt": 2}}}) == ["a"]
    n, word = 'metadata."n"', 'metadata."word"'
    large, x, y = {"key": n, "range": {"gt": 2.0}}, *({"key": word, "match": {"value": value}} for value in "xy")
    no_number = {"must_not": [{"key": n, "range": {"gte": -1e308}}]}
    assert [asked.body["filter"] for asked in shared_server().asked[before:]] == [
        {"must": [{"should": [{"must": [large, x]}, y]}]},
        {"must": [{"should": [{"key": n, "range": {"lte": 2.0}}, no_number]}]},
    ]


@settings(max_examples=500, deadline=None)
@example(kept=9.87654321012e21, wanted=9876543210119999500000, same=False)  # the first is smaller than its digits say
@example(kept=10**400, wanted=1e300, same=False)
@given(OPERANDS | st.integers(-(2**70), 2**70), OPERANDS | st.integers(-(2**70), 2**70), st.booleans())
def test_what_is_true_of_numbers_is_true_of_what_stands_for_them(kept: float, wanted: float, same: bool) -> None:
    wanted = kept if same else wanted
    stored = [kept] if is_plain(kept) else around(kept)
    below, above = (wanted, wanted) if is_plain(wanted) else around(wanted)
    for holds, compare, bound in [
        (kept > wanted, operator.gt, below),
        (kept >= wanted, operator.ge, below),
        (kept < wanted, operator.lt, above),
        (kept <= wanted, operator.le, above),
        (kept == wanted, operator.eq, below),
    ]:
        assert not holds or any(compare(float(number), float(bound)) for number in stored)


# Of too many digits, or of too large a power of ten, to be read exactly by the engine; and what stands in for some of
# them must not be of such a kind again.
MISREAD = [
    9642099137686.719,
    3842582875267770.0,
    5e-29,
    6.263590812205678e-15,
    9.920869220175678e-26,
    3e25,
    5.83e25,
    7e33,
]
MISREAD += [-3e25, 4.120749370375678e190, -4.120749370375678e190]


@pytest.mark.parametrize("make", [on_server, by_grpc], ids=["http", "grpc"])
def test_numbers_that_the_engine_reads_otherwise_come_back_and_are_found(make: Any) -> None:
    numbers = {f"d{place:02}": number for place, number in enumerate(MISREAD)}
    with make() as made:
        fill(made, dict.fromkeys(numbers, torch.ones(1, DIM)), [{"a": number} for number in MISREAD])
        assert [document.metadata["a"] for document in made.get(list(numbers))] == MISREAD
        for number in MISREAD:
            for sign, compare in [("$eq", operator.eq), ("$gte", operator.ge), ("$lte", operator.le)]:
                wanted = [name for name, other in numbers.items() if compare(other, number)]
                assert made.ids({"a": {sign: number}}) == wanted, (sign, number)


def test_only_numbers_are_replaced() -> None:
    kept = {"a": [1, True, None, "x", 0.25, {"b": 10**15}], "c": {"d": -19.99}}
    assert searchable(kept) == kept
    assert searchable({"a": [0.1 + 0.2, 1]}) == {"a": [0.3, 0.300000000001, 1]}


@pytest.mark.parametrize("make", [on_server, by_grpc], ids=["http", "grpc"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_scores_are_those_of_memory(make: Any, dtype: Any) -> None:
    documents = {f"d{number}": matrix for number, matrix in enumerate(units(1, *range(1, 40)))}
    queries = units(2, 8, 3, 5)
    with make(dtype=dtype) as store, MemoryStore(dtype) as memory:
        for each in (store, memory):
            fill(each, documents)
        expected, got = found(memory, queries, 10), found(store, queries, 10)
        kept = {document.id: document.embeddings for document in memory.iter_documents()}
        for document in store.iter_documents():
            assert document.embeddings.dtype == getattr(torch, dtype)  # type: ignore[union-attr]
            assert torch.equal(document.embeddings, kept[document.id])  # type: ignore[arg-type]
    for row, expected_row in zip(got, expected, strict=True):
        assert [name for name, _ in row] == [name for name, _ in expected_row]
        assert [score for _, score in row] == pytest.approx(
            [score for _, score in expected_row], abs=2e-3 if dtype == "float16" else 1e-5
        )


def test_moving_there_and_back_changes_nothing() -> None:
    documents = {f"d{number}": matrix for number, matrix in enumerate(units(1, *range(1, 60)))}
    notes = [{"n": number, "weight": number / 7} for number in range(len(documents))]
    queries = units(2, 8, 3)
    with MemoryStore() as before, on_server() as there, MemoryStore() as after:
        fill(before, documents, notes)
        assert there.copy_from(before, batch_tokens=200) == after.copy_from(there) == 59
        assert after.search(queries, 20) == before.search(queries, 20)
        assert after.search(queries, 20, {"weight": 3 / 7}) == before.search(queries, 20, {"weight": 3 / 7})
        kept = {document.id: document.embeddings for document in before.iter_documents()}
        assert all(torch.equal(document.embeddings, kept[document.id]) for document in after.iter_documents())


# ----------------------------------------------------------------------------------------------------- many, and ties


def test_a_query_without_vectors_finds_every_document_alike(store: QdrantStore) -> None:
    queries = TokenEmbeddings.from_list([torch.ones(0, DIM), torch.ones(1, DIM)])
    with on_server() as made, MemoryStore() as memory:
        for each in (made, memory):
            fill(
                each, {name: matrix for name, matrix in zip("cab", dyadic(1, 2, 3, 1), strict=True)}, [{"n": 1}, {}, {}]
            )
        assert made.search(queries, 2) == memory.search(queries, 2)
        assert made.search(queries, 2, {"n": 1}) == memory.search(queries, 2, {"n": 1})


@pytest.mark.parametrize("search", ["exact", "first_stage"])
@pytest.mark.parametrize("named", [False, True])  # ids go with each query, and with its first stage once more
def test_queries_are_sent_in_requests_of_so_many_bytes(named: bool, search: str) -> None:
    documents = {f"d{number}": matrix for number, matrix in enumerate(dyadic(1, *[3] * 20))}
    queries = dyadic(5, *[4] * 30)
    with on_server(batch_bytes=6000, first_stage="mean") as made:
        fill(made, documents)
        before = len(shared_server().asked)
        ids = list(documents) if named else None
        assert found(made, queries, 4, ids=ids, search=search) == brute_force(documents, queries, 4)
        sizes = [asked.size for asked in shared_server().asked[before:] if asked.call.endswith("/query/batch")]
        assert 1 < len(sizes) < 30
        assert max(sizes) <= 6000


def test_many_ids_are_looked_among_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("colbert_integrations.qdrant.store._NAMED", 3)
    documents = {f"d{number:02}": matrix for number, matrix in enumerate(dyadic(1, *[3] * 20))}
    with on_server() as made:
        fill(made, documents, [{"n": number} for number in range(20)])
        some = {name: documents[name] for name in sorted(documents)[4:15]}
        assert found(made, QUERIES, 5, ids=list(some)) == brute_force(some, QUERIES, 5)
        assert found(made, QUERIES, 5, filter=lambda document: document.id in some) == brute_force(some, QUERIES, 5)
        made.delete(sorted(documents)[:8])
        assert made.ids() == sorted(documents)[8:]


def test_equal_documents_beyond_k_are_all_looked_at() -> None:
    same, other = dyadic(2, 3)[0], dyadic(3, 3)[0]
    with on_server() as made:
        # Their best are "c..." or "m...", whichever scores higher; equal ones come in the order of their ids.
        names = [f"{letter}{number:02}" for number in range(40) for letter in "mc"]
        fill(made, {name: same if name[0] == "m" else other for name in names})
        documents = {name: same if name[0] == "m" else other for name in names}
        for k in (1, 39, 40, 41, 79, 80, 81):
            assert found(made, QUERIES, k) == brute_force(documents, QUERIES, k)


@pytest.mark.parametrize("filter", [None, {"n": {"$ne": 0.1 + 0.2}}], ids=["all", "some"])
def test_of_equal_documents_only_the_best_are_read_whole(filter: Any) -> None:
    with on_server() as made, MemoryStore() as memory:
        names = [f"d{number:03}" for number in range(200)]
        vectors = TokenEmbeddings.from_list([dyadic(2, 3)[0]] * 200)
        notes = [{"n": 0.1 + 0.2, "list": [number]} if number < 3 else {"list": [number]} for number in range(200)]
        for each in (made, memory):
            each.upsert(names, vectors, [f"{name} {'x' * 1000}" for name in names], notes)
        received: list[int] = []
        query, retrieve = made.client.query_batch_points, made.client.retrieve

        def queried(*args: Any, **options: Any) -> Any:
            answers = query(*args, **options)
            received.extend(len(point.payload.get("text") or "") for answer in answers for point in answer.points)
            return answers

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(made.client, "query_batch_points", queried)
            hits = made.search(QUERIES, 5, filter)
            assert hits == memory.search(QUERIES, 5, filter)
            assert sum(map(bool, received)) == 6 * len(QUERIES)  # those of the first answer
            # What was changed meanwhile, so that it is not wanted any more, or is gone, is not found.

            def changed(*args: Any, **options: Any) -> Any:
                made.set_metadata(["d003"], [{"n": 0.1 + 0.2}])
                made.delete(["d004"])
                return retrieve(*args, **options)

            patch.setattr(made.client, "retrieve", changed)
            gone = {"d004"} if filter is None else {"d003", "d004"}
            expected = [[hit.id for hit in each if hit.id not in gone] for each in hits]
            assert [[hit.id for hit in each] for each in made.search(QUERIES, 5, filter)] == expected
        first, second = hits[0][0], hits[1][0]
        assert first.id == second.id
        first.metadata["list"].append("mine")
        assert second.metadata == notes[names.index(second.id)]


# --------------------------------------------------------------------------------------------------- candidate stages

MANY = {f"d{number:03}": matrix for number, matrix in enumerate(units(1, *[8] * 400, dim=64))}
QUERY = units(2, 6, dim=64)


@pytest.fixture(scope="module")
def coded() -> Iterator[QdrantStore]:
    """A store whose collection has codes, and means for a first stage."""
    with on_server(dtype="float32", quantization="int8", first_stage="mean") as made:
        fill(made, MANY, [{"n": number} for number in range(len(MANY))])
        shared_server().engine.optimize(made.collection)
        yield made


def asked_params(calls: int) -> list[Mapping[str, Any]]:
    """Parameters of the last searches that the server got."""
    bodies = [asked.body for asked in shared_server().asked if asked.call.endswith("/query/batch")]
    return [search.get("params") for body in bodies[-calls:] for search in body["searches"]]


def test_codes_alone_would_give_other_scores(coded: QdrantStore) -> None:
    # Were it not so, the tests below could not fail.
    request = models.QueryRequest(query=QUERY[0].tolist(), using="colbert", limit=10)
    (reply,) = coded.client.query_batch_points(coded.collection, [request])
    expected = [score for _, score in brute_force(MANY, QUERY, 10)[0]]
    assert [point.score for point in reply.points] != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("search", ["exact", "codes", "first_stage"])
def test_scores_never_come_from_codes(coded: QdrantStore, search: Any) -> None:
    true = dict(brute_force(MANY, QUERY, len(MANY))[0])
    hits = found(coded, QUERY, 10, search=search)[0]
    assert len(hits) == 10
    assert [score for _, score in hits] == pytest.approx([true[name] for name, _ in hits], abs=1e-5)


@pytest.mark.parametrize("candidates", [None, 1, 10, 200])
def test_codes_are_always_rescored_with_more_than_are_asked_for(coded: QdrantStore, candidates: int | None) -> None:
    coded.search(QUERY, 10, search="codes", candidates=candidates)
    (params,) = asked_params(1)
    assert params["quantization"]["rescore"] is True
    assert params["quantization"]["oversampling"] == pytest.approx(max(2, (candidates or 20) / 11))
    coded.search(QUERY, 10)
    assert asked_params(1) == [{"exact": True, "quantization": {"ignore": True}}]


def test_codes_find_what_exact_search_finds(coded: QdrantStore) -> None:
    exact = [name for name, _ in found(coded, QUERY, 10)[0]]
    assert [name for name, _ in found(coded, QUERY, 10, search="codes")[0]] == exact


def test_the_first_stage_hands_on_its_candidates_only(coded: QdrantStore) -> None:
    means = torch.nn.functional.normalize(torch.stack([matrix.mean(0) for matrix in MANY.values()]), dim=1)
    order = (means @ QUERY[0].mean(0)).argsort(descending=True).tolist()
    nearest = {name: MANY[name] for name in (list(MANY)[place] for place in order[:30])}
    hits = found(coded, QUERY, 10, search="first_stage", candidates=30)[0]
    assert [name for name, _ in hits] == [name for name, _ in brute_force(nearest, QUERY, 10)[0]]
    assert hits != found(coded, QUERY, 10)[0]  # it loses some


@pytest.mark.parametrize("search", ["first_stage", "codes"])
@pytest.mark.parametrize("filter", [None, {"n": {"$lt": 200}}, lambda document: document.metadata["n"] < 200])
async def test_an_async_search_has_the_same_candidates(coded: QdrantStore, search: Any, filter: Any) -> None:
    before = len(shared_server().asked)
    expected = coded.search(QUERY, 10, filter, search=search, candidates=30)
    middle = len(shared_server().asked)
    assert await coded.asearch(QUERY, 10, filter, search=search, candidates=30) == expected
    asked = [
        [each.body for each in shared_server().asked[part]] for part in (slice(before, middle), slice(middle, None))
    ]
    assert asked[0] == asked[1]
    if search == "first_stage":
        assert expected != coded.search(QUERY, 10, filter, search=search)  # among more it finds others


def test_a_first_stage_that_hands_on_everything_loses_nothing(coded: QdrantStore) -> None:
    assert found(coded, QUERY, 10, search="first_stage", candidates=400) == found(coded, QUERY, 10)
    few = {"n": {"$lt": 30}}
    some = found(coded, QUERY, 10, filter=few, search="first_stage", candidates=30)
    (search,) = next(asked.body for asked in reversed(shared_server().asked) if "query" in asked.call)["searches"]
    assert some == found(coded, QUERY, 10, filter=few)
    assert search["filter"] == search["prefetch"]["filter"]  # of servers too that hand no filter on


class Lengths:
    """Vectors of texts, as another model would make them: here of their lengths."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self._vector(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        self.queries.append(text)
        return self._vector(text)

    def _vector(self, text: str) -> list[float]:
        angle = len(text) / 100
        return [math.cos(angle), math.sin(angle)]


@pytest.mark.parametrize(
    "make", [on_server, lambda **options: QdrantStore(":memory:", **options)], ids=["server", "local"]
)
def test_a_first_stage_may_have_vectors_of_its_own(make: Any) -> None:
    model = Lengths()
    with make(first_stage=model, search="first_stage", candidates=3) as made:
        vectors = dyadic(1, *[3] * 20)
        made.upsert([f"d{number}" for number in range(20)], vectors, ["x" * number for number in range(20)])
        near = {f"d{number}": vectors[number] for number in (9, 10, 11)}
        hits = found(made, QUERIES[:1], 3, texts=["y" * 10])
        assert hits == brute_force(near, QUERIES[:1], 3)
        assert model.queries[-1] == "y" * 10
        with pytest.raises(InputError, match="pass texts="):
            made.search(QUERIES[:1])
        with pytest.raises(InputError, match="'none' has no text"):
            made.upsert(["none"], vectors[:1])
        assert made.count() == 20


@pytest.mark.parametrize(
    "make",
    [on_server, by_grpc, lambda **options: QdrantStore(":memory:", **options)],
    ids=["server", "grpc", "local"],
)
def test_vectors_of_a_first_stage_may_be_too_large_for_a_float16(make: Any) -> None:
    class Large(Lengths):
        def _vector(self, text: str) -> list[float]:
            return [1e5 * number for number in super()._vector(text)]

    with make(first_stage=Large()) as made:
        made.upsert(["a", "b"], dyadic(1, 3, 3), ["", "x" * 300])
        points, _ = made.client.scroll(made.collection, with_vectors=["first_stage"])
        kept = {point.payload["id"]: point.vector["first_stage"] for point in points}  # of length 1
        assert kept == {
            "a": pytest.approx([1, 0], abs=1e-6),
            "b": pytest.approx([math.cos(3), math.sin(3)], abs=1e-6),
        }


@pytest.mark.parametrize(
    ("lengths", "said"),
    [([2], "the first stage made 1 vectors for 2 texts"), ([2, 3], "made vectors of several dimensions: 2, 3")],
)
def test_wrong_vectors_of_a_first_stage_are_refused(lengths: list[int], said: str) -> None:
    class Wrong(Lengths):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[1.0] * length for length in lengths]

    with on_server(first_stage=Wrong()) as made, pytest.raises(InputError, match=said):
        made.upsert(["a", "b"], dyadic(1, 3, 3), ["a", "b"])


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_vectors_of_a_first_stage_that_are_not_finite_are_refused(wrong: float) -> None:
    class Wrong(Lengths):
        def _vector(self, text: str) -> list[float]:
            return [1.0, wrong if text == "wrong" else 0.0]

    with on_server(first_stage=Wrong(), search="first_stage") as made:
        fill(made, {"right": dyadic(1, 3)[0]})
        with pytest.raises(InputError, match="the first stage made vectors that are not all finite"):
            fill(made, {"fine": dyadic(1, 3)[0], "wrong": dyadic(1, 3)[0]})
        with pytest.raises(InputError, match="the first stage made vectors that are not all finite"):
            made.search(QUERIES[:1], texts=["wrong"])
        assert made.ids() == ["right"]


@pytest.mark.parametrize("queries", [[[1.0, 2.0]], None])
async def test_queries_that_are_no_token_embeddings_reach_no_first_stage(queries: Any) -> None:
    with QdrantStore(":memory:", first_stage="mean", search="first_stage") as made:
        with pytest.raises(InputError, match="queries must be TokenEmbeddings, not"):
            made.search(queries)
        with pytest.raises(InputError, match="queries must be TokenEmbeddings, not"):
            await made.asearch(queries)


def test_a_first_stage_of_no_queries_finds_nothing() -> None:
    with on_server(first_stage=Lengths(), search="first_stage") as made:
        fill(made, {"a": dyadic(1, 3)[0]})
        assert made.search(QUERIES[:0], texts=[]) == []


async def test_the_first_stage_of_an_async_search(coded: QdrantStore) -> None:
    with on_server(first_stage=Lengths(), search="first_stage") as made:
        fill(made, {"a": dyadic(1, 3)[0]})
        assert (await made.asearch(QUERIES[:1], texts=["a"]))[0][0].id == "a"


def test_a_model_of_llama_index_makes_vectors_too() -> None:
    class Model(MockEmbedding):
        def _get_text_embedding(self, text: str) -> list[float]:
            return Lengths().embed_query(text)

        _get_query_embedding = _get_text_embedding

    vectors = dyadic(1, *[3] * 20)
    with on_server(first_stage=Model(embed_dim=2), search="first_stage", candidates=3) as made:
        made.upsert([f"d{number}" for number in range(20)], vectors, ["x" * number for number in range(20)])
        near = {f"d{number}": vectors[number] for number in (9, 10, 11)}
        assert found(made, QUERIES[:1], 3, texts=["y" * 10]) == brute_force(near, QUERIES[:1], 3)


def test_an_index_tells_the_store_what_its_queries_say(tiny: ColBERT) -> None:
    model, short, long = Lengths(), "quest", "quest" + 20 * " "  # to the other model only, space counts
    with on_server(first_stage=model, search="first_stage") as made:
        index = ColBERTIndex(tiny, made)
        index.add([short, long], ids=["s", "l"])
        assert index.search(short, k=1, candidates=1)[0].id == "s"
        assert [hits[0].id for hits in index.search([short, long], k=1, candidates=1)] == ["s", "l"]
        assert model.queries[-3:] == [short, short, long]


@pytest.mark.parametrize(
    ("options", "search", "said"),
    [
        ({}, "centroids", "a QdrantStore has no search='centroids'"),
        ({}, "fast", "must be one of 'exact', 'codes', 'first_stage', not 'fast'"),
        ({}, "codes", "make the collection with quantization="),
        ({}, "first_stage", "make the store with first_stage="),
        ({"quantization": "int8"}, "first_stage", "make the store with first_stage="),
    ],
)
def test_a_search_that_the_store_was_not_made_for_is_refused(options: Any, search: Any, said: str) -> None:
    with on_server(**options) as made:
        fill(made, {"a": torch.ones(1, DIM)})
        with pytest.raises(InputError, match=said):
            made.search(QUERIES, search=search)


def test_a_memory_store_has_no_first_stage() -> None:
    with pytest.raises(
        InputError, match="a MemoryStore has no search='first_stage': it has 'exact', 'codes', 'centroids'"
    ):
        MemoryStore(search="first_stage")


# --------------------------------------------------------------------------------------------------------------- wire


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=20))
def test_vectors_in_few_digits_are_the_same_vectors(values: list[float]) -> None:
    for dtype in ("float16", "float32"):
        kept = torch.tensor([values]).to(getattr(torch, dtype))
        wire = Wire(dtype, text=True)
        text = json.dumps(wire.numbers(kept), separators=(",", ":"))
        again = torch.tensor(json.loads(text), dtype=torch.float32).to(kept.dtype)
        assert torch.equal(again, kept)
        if all(
            value == 0 or abs(value) > 1e-12 for value in values
        ):  # nearer to 0 there are more digits, and no matter
            assert len(text) <= wire.size_of(kept)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_so_are_those_of_any_size(dtype: Any) -> None:
    bits = np.arange(2**16) if dtype == "float16" else np.random.default_rng(0).integers(0, 2**32, 50_000)
    every = bits.astype("uint16" if dtype == "float16" else "uint32").view(dtype)
    kept = torch.from_numpy(every[np.isfinite(every)])
    again = torch.tensor(Wire(dtype, text=True).numbers(kept), dtype=torch.float64)
    assert torch.equal(again.to(kept.dtype), kept)


@pytest.mark.parametrize("shape", [(50, 1), (1, 50), (50,)])
def test_vectors_take_no_more_bytes_than_was_said(shape: tuple[int, ...]) -> None:
    vectors = torch.full(shape, -0.0001206431698)  # of which no text is longer
    text, binary = Wire("float32", text=True), Wire("float32", text=False)
    assert len(json.dumps(text.numbers(vectors), separators=(",", ":"))) <= text.size_of(vectors)
    assert np.asarray(binary.numbers(vectors), np.float32).nbytes <= binary.size_of(vectors)

"""The contract that every store keeps, whatever is behind it."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colbert_integrations import Hit, MemoryStore, TokenEmbeddings
from colbert_integrations.errors import (
    FilterError,
    FingerprintError,
    InputError,
    NonFiniteError,
    ShapeError,
    StoreError,
)
from colbert_integrations.fingerprint import Fingerprint
from colbert_integrations.index import Store, StoredDocument
from moments import SIGNS, Moment, moments
from stores import DIM, KINDS, STORES, brute_force, dyadic, fill, found, needs_numpy_2

QUERIES = dyadic(99, 3, 1, 5)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def store(kind: str) -> Any:
    with STORES[kind]() as made:
        yield made


@pytest.fixture
def documents() -> dict[str, torch.Tensor]:
    return {f"d{number}": matrix for number, matrix in enumerate(dyadic(1, 4, 1, 7, 3, 2, 9, 5))}


def ids(hits: list[list[Hit]]) -> list[list[str]]:
    return [[hit.id for hit in row] for row in hits]


# ------------------------------------------------------------------------------------------------------------- search


def test_search_gives_the_sums_of_the_formula_in_order(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    assert found(store, QUERIES, 4) == brute_force(documents, QUERIES, 4)


def test_equal_scores_are_ordered_by_id_also_where_k_cuts_them(store: Store) -> None:
    same = dyadic(2, 3)[0]
    names = [f"{number:03}" for number in range(150)]
    fill(store, {name: same for name in reversed(names)})
    assert ids(store.search(QUERIES, 5)) == [names[:5]] * 3


def test_equal_scores_behind_a_better_one_are_ordered_by_id(store: Store) -> None:
    one = torch.ones(1, DIM)
    fill(store, {f"{number:03}": one / 2 for number in reversed(range(150))} | {"best": one})
    assert ids(store.search(TokenEmbeddings.from_list([one]), 2)) == [["best", "000"]]


def test_k_may_be_more_than_there_is(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    assert [len(row) for row in store.search(QUERIES, 100)] == [7, 7, 7]


def test_an_empty_store_finds_nothing(store: Store) -> None:
    assert store.search(QUERIES) == [[], [], []]
    assert (store.count(), len(store), store.dim) == (0, 0, None)
    assert list(store.iter_documents()) == store.get(["a"]) == []


def test_an_empty_store_has_nothing_to_change(store: Store) -> None:
    store.delete(["a"])
    store.set_metadata(["a"], [{"n": 1}])
    assert (store.count(), store.dim) == (0, None)


def test_no_query_finds_nothing(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    assert store.search(QUERIES[:0]) == []


def test_all_similarities_may_be_negative(store: Store) -> None:
    one = torch.ones(1, DIM)
    fill(store, {"a": -one, "b": -one / 2})
    assert found(store, TokenEmbeddings.from_list([one]), 2) == [[("b", -DIM / 2), ("a", -float(DIM))]]


def test_hits_carry_text_and_metadata_that_are_free_to_change(store: Store) -> None:
    fill(store, {"a": torch.ones(2, DIM)}, [{"tags": ["x"], "in": {"deep": 1}}])
    hit = store.search(QUERIES[:1])[0][0]
    assert (hit.text, hit.metadata, type(hit.score)) == ("a", {"tags": ["x"], "in": {"deep": 1}}, float)
    hit.metadata["tags"].append("y")
    hit.metadata["in"]["deep"] = 2
    assert store.get(["a"])[0].metadata == {"tags": ["x"], "in": {"deep": 1}}


def test_only_named_documents_are_searched(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    some = {name: documents[name] for name in ("d1", "d5")}
    assert found(store, QUERIES, 9, ids=["d5", "d1", "unknown"]) == brute_force(some, QUERIES, 9)
    assert store.search(QUERIES[:1], ids=[]) == [[]]


# ------------------------------------------------------------------------------------------------------------- filter


@needs_numpy_2
def test_filters_are_applied_before_scoring(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents, [{"n": number, "odd": bool(number % 2)} for number in range(7)])
    odd = {name: documents[name] for name in ("d1", "d3", "d5")}
    assert found(store, QUERIES, 2, filter={"odd": True}) == brute_force(odd, QUERIES, 2)
    late = {name: documents[name] for name in ("d5", "d6")}
    assert found(store, QUERIES, 9, filter={"n": {"$gt": 4}}) == brute_force(late, QUERIES, 9)
    assert store.search(QUERIES[:1], filter={"n": 7}) == [[]]


# By hand: where the key is in none, either or both of its places, and what each condition then finds.
NOTES = [{}, {"loc.page": 3}, {"loc": {"page": 3}}, {"loc.page": 3, "loc": {"page": 4}}, {"loc.page": [3, 0.1 + 0.2]}]
NOTES += [{"loc.page": "x", "loc": {"page": None}}, {"loc": {"page": 0.3}, "page": 4, "loc.page.x": 4}]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (3, "1234"),
        (4, "3"),
        ("x", "5"),
        (None, "5"),
        (0.3, "6"),
        ({"$in": [4, "x"]}, "35"),
        ({"$gt": 3}, "3"),
        ({"$lt": 1}, "46"),
        ({"$gt": 3, "$lt": 4}, "3"),
        ({"$ne": 3}, "056"),
        ({"$ne": 0.3}, "012345"),
        ({"$ne": 0.1 + 0.2}, "012356"),
        ({"$ne": "x"}, "012346"),
        ({"$nin": [4, None]}, "01246"),
        ({"$nin": [3, 0.3]}, "05"),
        ({"$nin": [0.3, 0.1 + 0.2]}, "01235"),
        ({"$nin": []}, "0123456"),
    ],
    ids=str,
)
def test_a_key_with_a_dot_is_found_under_its_name_and_nested(
    store: Store, documents: dict[str, torch.Tensor], condition: Any, expected: str
) -> None:
    fill(store, documents, NOTES)
    wanted = [f"d{number}" for number in expected]
    assert store.ids({"loc.page": condition}) == wanted
    some = {name: documents[name] for name in wanted}
    assert found(store, QUERIES, 9, filter={"loc.page": condition}) == brute_force(some, QUERIES, 9)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        ({"$or": [{"loc.page": 4}, {"loc.page": "x"}]}, "35"),
        ({"$or": [{"loc.page": {"$gt": 3}}, {"page": 4}]}, "36"),
        ({"$or": [{"loc.page": {"$lt": 1}}], "page": {"$ne": 4}}, "4"),
        ({"$and": [{"loc.page": 3}, {"loc.page": 4}]}, "3"),
        ({"$and": [{"loc.page": 3}, {"loc.page": 0.1 + 0.2}]}, "4"),
        ({"$not": {"loc.page": 3}}, "056"),
        ({"$not": {"loc.page": {"$gt": 3}}}, "012456"),
        ({"$not": {"loc.page": {"$gte": 3}}}, "056"),
        ({"$not": {"loc.page": {"$lt": 3}}}, "01235"),
        ({"$not": {"loc.page": {"$lte": 0.3}}}, "012345"),
        ({"$not": {"loc.page": {"$ne": 3}}}, "1234"),
        ({"$not": {"$or": [{"loc.page": 3}, {"page": 4}]}}, "05"),
        ({"$not": {"$and": [{"loc.page": 3}, {"loc.page": 4}]}}, "012456"),
        ({"$not": {}}, ""),
        ({"$or": [{}, {"page": 4}]}, "0123456"),
    ],
    ids=str,
)
def test_filters_are_joined_and_negated(
    store: Store, documents: dict[str, torch.Tensor], filter: dict[str, Any], expected: str
) -> None:
    fill(store, documents, NOTES)
    wanted = [f"d{number}" for number in expected]
    assert store.ids(filter) == wanted
    some = {name: documents[name] for name in wanted}
    # Of no documents brute force makes no scores at all.
    assert found(store, QUERIES, 9, filter=filter) == (brute_force(some, QUERIES, 9) if some else [[]] * len(QUERIES))


# By hand: two are the same moment, one is a microsecond before it, and one is a date to Qdrant alone.
DATES = [{}, {"when": "2024-01-31"}, {"when": "2024-01-31T01:00:00+01:00"}, {"when": "2024-01-30 23:59:59.999999"}]
DATES += [{"when": ["soon", "2024-02-01 00:00"]}, {"when": "2024-1-31"}, {"when": 20240131}]
EAST = datetime.timezone(datetime.timedelta(hours=1))


@pytest.mark.parametrize(
    ("condition", "within", "not_within"),
    [
        ({"$gte": "2024-01-31"}, "124", "0356"),
        ({"$gt": "2024-01-31"}, "4", "012356"),
        ({"$lt": "2024-01-31T00:00:00"}, "3", "012456"),
        ({"$lte": "2024-01-31 05:30:00+0530"}, "123", "0456"),
        ({"$gte": "2024-01-30T23:59:59.999999Z", "$lt": "2024-02-01"}, "123", "0456"),
        ({"$gt": "2024-01-30T23:59:59.999999Z", "$lt": "2024-02-01"}, "12", "03456"),
        ({"$gte": datetime.date(2024, 1, 31), "$lt": datetime.datetime(2024, 2, 1)}, "12", "03456"),
        ({"$gt": datetime.datetime(2024, 1, 31, 1, tzinfo=EAST)}, "4", "012356"),
        ({"$gte": np.datetime64("2024-01-31", "ns")}, "124", "0356"),
        ({"$gte": "0001-01-01", "$lte": datetime.datetime.max}, "1234", "056"),
        ({"$gte": 0}, "6", "012345"),
        ("2024-01-31", "1", "023456"),
    ],
    ids=str,
)
def test_dates_are_compared_as_points_in_time(
    store: Store, documents: dict[str, torch.Tensor], condition: Any, within: str, not_within: str
) -> None:
    fill(store, documents, DATES)
    for filter, expected in (({"when": condition}, within), ({"$not": {"when": condition}}, not_within)):
        wanted = [f"d{number}" for number in expected]
        assert store.ids(filter) == wanted
        some = {name: documents[name] for name in wanted}
        assert found(store, QUERIES, 9, filter=filter) == brute_force(some, QUERIES, 9)
    assert store.ids({"$or": [{"when": condition}, {"$not": {"when": condition}}]}) == list(documents)


def test_moments_in_any_form_are_ordered_as_python_orders_them(store: Store) -> None:
    @settings(max_examples=25, deadline=None)
    @given(st.lists(moments(), min_size=6, max_size=6), moments(), st.booleans())
    def check(there: list[Moment], end: Moment, as_text: bool) -> None:
        fill(store, dict.fromkeys("abcdef", torch.ones(1, DIM)), [{"when": text} for text, _ in there])
        text, moment = end
        for name, compare in SIGNS.items():
            expected = [document for document, (_, at) in zip("abcdef", there, strict=True) if compare(at, moment)]
            assert store.ids({"when": {name: text if as_text else moment}}) == expected

    check()


def test_a_filter_may_be_a_function_of_the_document(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents, [{"n": number} for number in range(7)])
    seen: list[StoredDocument] = []

    def wanted(document: StoredDocument) -> bool:
        seen.append(document)
        return document.metadata["n"] < 2 and document.text == document.id

    assert found(store, QUERIES, 9, filter=wanted) == brute_force({n: documents[n] for n in ("d0", "d1")}, QUERIES, 9)
    assert len(seen) == 7


def test_ids_are_listed_in_order_and_filtered(store: Store, documents: dict[str, torch.Tensor]) -> None:
    assert store.ids() == []
    fill(store, dict(reversed(documents.items())), [{"n": number} for number in range(7)])
    store.delete(["d3"])
    assert store.ids() == ["d0", "d1", "d2", "d4", "d5", "d6"]
    assert store.ids({"n": {"$lt": 2}}) == ["d5", "d6"]
    assert store.ids(lambda document: document.id < "d2") == ["d0", "d1"]


def test_filter_and_ids_must_both_hold(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents, [{"n": number} for number in range(7)])
    assert ids(store.search(QUERIES[:1], ids=["d1", "d2"], filter={"n": {"$gte": 2}})) == [["d2"]]


def test_a_filter_outside_the_language_is_refused_also_on_an_empty_store(store: Store) -> None:
    with pytest.raises(FilterError, match="regex"):
        store.search(QUERIES, filter={"a": {"$regex": "x"}})


# ------------------------------------------------------------------------------------------------------------ writing


def test_upsert_replaces_and_says_it_again_changes_nothing(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    fill(store, {"d2": documents["d3"], "new": documents["d1"]}, [{"v": 2}, {}])
    for _ in range(2):
        now = {**documents, "d2": documents["d3"], "new": documents["d1"]}
        assert store.count() == 8
        assert found(store, QUERIES, 20) == brute_force(now, QUERIES, 20)
        assert store.get(["d2"])[0].metadata == {"v": 2}
        fill(store, {"d2": documents["d3"], "new": documents["d1"]}, [{"v": 2}, {}])


def test_of_a_repeated_id_the_last_counts(store: Store) -> None:
    first, last = torch.ones(2, DIM), torch.ones(3, DIM) / 2
    store.upsert(["a", "b", "a"], TokenEmbeddings.from_list([first, first, last]), ["1", "2", "3"])
    assert store.count() == 2
    assert [document.text for document in store.get(["a", "b"])] == ["3", "2"]
    assert torch.equal(store.get(["a"], embeddings=True)[0].embeddings.float(), last)  # type: ignore[union-attr]


def test_delete_passes_over_unknown_ids(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    store.delete(["d0", "unknown", "d6", "d0"])
    left = {name: matrix for name, matrix in documents.items() if name not in ("d0", "d6")}
    assert store.count() == 5
    assert found(store, QUERIES, 20) == brute_force(left, QUERIES, 20)
    assert store.get(["d0", "d1"])[0].id == "d1"
    store.delete(list(documents))
    assert (store.count(), store.search(QUERIES)) == (0, [[], [], []])


def test_get_keeps_the_order_asked_for(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    assert [document.id for document in store.get(["d4", "none", "d1"])] == ["d4", "d1"]
    assert store.get(["d4"])[0].embeddings is None
    vectors = store.get(["d4"], embeddings=True)[0].embeddings
    assert vectors is not None
    assert torch.equal(vectors.float(), documents["d4"])


def test_vectors_that_were_looked_up_are_the_callers_own(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    for document in [*store.get(list(documents), embeddings=True), *store.iter_documents()]:
        assert document.embeddings is not None
        document.embeddings.zero_()
    assert found(store, QUERIES, 20) == brute_force(documents, QUERIES, 20)


def test_metadata_is_replaced_without_touching_vectors(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents, [{"n": number} for number in range(7)])
    store.set_metadata(["d3", "unknown", "d1"], [{"n": "three"}, {}, {"m": 1}])
    assert [document.metadata for document in store.get(["d1", "d2", "d3"])] == [{"m": 1}, {"n": 2}, {"n": "three"}]
    assert store.count() == 7
    assert found(store, QUERIES, 20) == brute_force(documents, QUERIES, 20)
    assert ids(store.search(QUERIES[:1], filter={"n": "three"})) == [["d3"]]


def test_metadata_of_a_text_that_was_replaced_is_passed_over(store: Store) -> None:
    fill(store, {"a": torch.ones(1, DIM), "b": torch.ones(1, DIM)})  # each with its id as its text
    store.set_metadata(["a", "b", "c"], [{"n": 1}, {"n": 2}, {"n": 3}], ["another", "b", "c"])
    assert [document.metadata for document in store.get(["a", "b", "c"])] == [{}, {"n": 2}]
    store.upsert(["a"], TokenEmbeddings.from_list([torch.ones(1, DIM)]))  # without a text
    store.set_metadata(["a"], [{"n": 4}], [""])
    assert store.get(["a"])[0].metadata == {}
    with pytest.raises(InputError, match="2 ids but 1 texts"):
        store.set_metadata(["a", "b"], [{}, {}], ["old"])


def test_ids_may_come_from_a_generator(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    store.set_metadata(iter(["d1"]), iter([{"n": 1}]))  # type: ignore[arg-type]
    assert [document.metadata for document in store.get(map(str, ["d1"]))] == [{"n": 1}]  # type: ignore[arg-type]
    assert ids(store.search(QUERIES[:1], ids=iter(["d3"]))) == [["d3"]]  # type: ignore[arg-type]
    store.delete(name for name in ["d1", "d2"])  # type: ignore[arg-type]
    assert sorted(store.ids()) == ["d0", "d3", "d4", "d5", "d6"]


@pytest.mark.parametrize("impossible", [None, 5, "d1", [None], [""]])
def test_ids_that_are_none_are_refused(store: Store, documents: dict[str, torch.Tensor], impossible: Any) -> None:
    fill(store, documents)
    for call in (store.delete, store.get):
        with pytest.raises(InputError, match="id"):
            call(impossible)
    assert store.count() == 7


def test_an_async_filter_is_refused(store: Store, documents: dict[str, torch.Tensor]) -> None:
    async def nobody(document: StoredDocument) -> bool:
        return False

    fill(store, documents)
    with pytest.raises(FilterError, match="async"):
        store.search(QUERIES, filter=nobody)  # type: ignore[arg-type]
    with pytest.raises(FilterError, match="async"):
        store.ids(nobody)  # type: ignore[arg-type]


def test_metadata_that_is_nested_too_deep_is_refused(store: Store) -> None:
    def nested(levels: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(levels - 1):
            metadata = {"a": metadata}
        return metadata

    fill(store, {"a": torch.ones(1, DIM)}, [nested(32)])
    assert store.get(["a"])[0].metadata == store.search(QUERIES)[0][0].metadata == nested(32)
    for levels in (33, 600, 5000):
        with pytest.raises(InputError, match="levels|JSON"):
            fill(store, {"b": torch.ones(1, DIM)}, [nested(levels)])
    assert store.ids() == ["a"]


def test_metadata_comes_back_as_json_has_it(store: Store) -> None:
    given = {"pages": (1, 2), "big": 2**53 + 1, "none": None, "text": "\u0000 é 漢", "nested": {"a": [{"b": 1.5}]}}
    fill(store, {"a": torch.ones(1, DIM)}, [given])
    given["nested"]["a"].append(0)  # type: ignore[index]  # what the caller does later is not seen
    expected = {**given, "pages": [1, 2], "nested": {"a": [{"b": 1.5}]}}
    assert store.get(["a"])[0].metadata == expected


# ---------------------------------------------------------------------------------------------------------- bad input

ONE = TokenEmbeddings.from_list([torch.ones(1, DIM)])


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ((["a", "b"], ONE), InputError, "2 ids but 1 embeddings"),
        ((["a"], ONE, ["x", "y"]), InputError, "1 ids but 2 texts"),
        ((["a"], ONE, None, [{}, {}]), InputError, "1 ids but 2 metadatas"),
        (("a", ONE), InputError, "must be a list"),
        (({"a"}, ONE), InputError, "ids must be a list, not set"),
        ((["a"], ONE, frozenset({"x"})), InputError, "texts must be a list, not frozenset"),
        ((["a"], ONE, "x"), InputError, "texts must be a list, not str"),
        ((["a"], ONE, None, {"x"}), InputError, "metadatas must be a list, not set"),
        ((["a"], torch.ones(1, DIM)), InputError, "embeddings must be TokenEmbeddings, not Tensor"),
        ((["a"], [torch.ones(1, DIM)]), InputError, "embeddings must be TokenEmbeddings, not list"),
        (([1], ONE), InputError, "not 1"),
        ([[""], ONE], InputError, "not empty"),
        ((["a"], ONE, [3]), InputError, "text of document 'a'"),
        ((["a"], TokenEmbeddings.from_list([torch.ones(0, DIM)])), InputError, "'a' has no vectors"),
        ((["a"], TokenEmbeddings.from_list([torch.full((1, DIM), math.nan)])), NonFiniteError, "'a' are not all"),
        ((["a"], TokenEmbeddings.from_list([torch.full((1, DIM), math.inf)])), NonFiniteError, "'a' are not all"),
        (
            (["a"], TokenEmbeddings.from_list([torch.full((1, DIM), 1e39, dtype=torch.float64)])),
            NonFiniteError,
            "'a' are not all",
        ),
        ((["a"], TokenEmbeddings.from_list([torch.ones(1, DIM + 1)])), InputError, f"dim {DIM}, not {DIM + 1}"),
        ((["a"], ONE, None, [{1: 2}]), InputError, "keys must be strings"),
        ((["a"], ONE, None, [{"x": [{2: 3}]}]), InputError, "keys must be strings"),
        ((["a"], ONE, None, [{"x": datetime.date(2020, 1, 1)}]), InputError, "not JSON at 'x'"),
        ((["a"], ONE, None, [{"x": math.nan}]), InputError, "not JSON at 'x'"),
        ((["a"], ONE, None, ["x"]), InputError, "must be a mapping"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_documents_are_refused_and_nothing_is_lost(
    store: Store, arguments: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    fill(store, {"kept": torch.ones(1, DIM)})
    with pytest.raises(error, match=said):
        store.upsert(*arguments)
    assert [document.id for document in store.iter_documents()] == ["kept"]


def test_changes_of_metadata_that_pair_nothing_are_refused(store: Store) -> None:
    fill(store, {"kept": torch.ones(1, DIM)})
    for arguments in (({"kept"}, [{}]), (["kept"], {"x"}), (["kept"], [{}], {"text"}), (["kept"], [{}], "t")):
        with pytest.raises(InputError, match="must be a list, not (set|str)"):
            store.set_metadata(*arguments)


def test_ids_that_stand_alone_may_be_a_set(store: Store) -> None:
    fill(store, {"a": torch.ones(1, DIM), "b": torch.ones(1, DIM)})
    assert ids(store.search(QUERIES[:1], ids={"b"})) == [["b"]]
    store.delete({"a"})
    assert [document.id for document in store.get({"a", "b"})] == ["b"]


def test_metadata_of_numpy_are_plain_data(store: Store) -> None:
    table = {
        "year": np.int64(2020),
        "share": np.float32(0.5),
        "new": np.bool_(True),
        "tags": [np.str_("a"), np.int8(3)],
    }
    fill(store, {"a": torch.ones(1, DIM)}, [table])
    [document] = store.get(["a"])
    assert document.metadata == {"year": 2020, "share": 0.5, "new": True, "tags": ["a", 3]}
    types = {key: type(value) for key, value in document.metadata.items()}
    assert types == {"year": int, "share": float, "new": bool, "tags": list}
    assert [hit.id for hit in store.search(QUERIES, filter={"year": {"$gt": 2019}, "tags": "a"})[0]] == ["a"]
    for impossible in (
        np.datetime64("2020-01-01"),
        np.datetime64("2020-01-01", "ns"),
        np.float32("nan"),
        np.complex64(1j),
        np.ones(2),
    ):
        with pytest.raises(InputError, match="not JSON at 'x'"):
            fill(store, {"a": torch.ones(1, DIM)}, [{"x": impossible}])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "k must be"),
        ({"k": True}, "k must be"),
        ({"k": 1.5}, "k must be"),
        ({"k": None}, "k must be"),
        ({"search": "fast"}, "search must be"),
        ({"candidates": 0}, "candidates must be"),
        ({"ids": "d0"}, "ids must be a list"),
        ({"filter": {"a": object()}}, "compared with"),
    ],
)
def test_bad_searches_are_refused(store: Store, options: dict[str, Any], said: str) -> None:
    fill(store, {"d0": torch.ones(1, DIM)})
    with pytest.raises(InputError, match=said):
        store.search(QUERIES, **options)


@pytest.mark.parametrize("queries", [torch.ones(1, DIM), [torch.ones(1, DIM)], "wing", None])
async def test_queries_that_are_no_token_embeddings_are_refused(store: Store, queries: Any) -> None:
    for _ in range(2):  # empty, and not
        with pytest.raises(InputError, match="queries must be TokenEmbeddings, not"):
            store.search(queries)
        with pytest.raises(InputError, match="queries must be TokenEmbeddings, not"):
            await store.asearch(queries)
        fill(store, {"d0": torch.ones(1, DIM)})


def test_queries_that_do_not_fit_are_refused(store: Store) -> None:
    fill(store, {"d0": torch.ones(1, DIM)})
    with pytest.raises(ShapeError, match=f"dim 3, the store holds vectors of dim {DIM}"):
        store.search(TokenEmbeddings.from_list([torch.ones(1, 3)]))
    with pytest.raises(InputError, match="not all finite"):
        store.search(TokenEmbeddings.from_list([torch.full((1, DIM), math.nan)]))


# ------------------------------------------------------------------------------------------- fingerprint, copy, close

HERE, THERE = Fingerprint("abc", "one", DIM), Fingerprint("def", "two", DIM)


def test_fingerprints_are_equal_if_their_digests_are() -> None:
    assert Fingerprint("abc", "another", DIM + 1, {"projection_dim": DIM}) == HERE
    assert Fingerprint("def", "one", DIM) != HERE


def test_a_store_is_bound_to_one_model(store: Store) -> None:
    assert store.fingerprint is None
    store.bind(HERE)
    store.bind(Fingerprint("abc", "the same by another name", DIM))
    with pytest.raises(FingerprintError, match=r"the same by another name \(dim 8, abc\).*two \(dim 8, def\)"):
        store.bind(THERE)
    assert store.fingerprint == HERE


def test_a_store_is_bound_to_no_model_of_another_dimension(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    with pytest.raises(FingerprintError, match=r"holds vectors of dim 8, which are not those of three \(dim 3, x\)"):
        store.bind(Fingerprint("x", "three", 3))
    assert store.fingerprint is None
    store.bind(HERE)


def test_encodings_stay_until_others_are_said(store: Store) -> None:
    old, new = {"pool_factor": 2, "document_length": None}, {"pool_factor": 1, "document_length": 32}
    for said, kept in (([old], [old]), ((), [old]), ([old, new], [old, new]), ([new], [new])):
        store.bind(replace(HERE, encodings=said))
        assert store.fingerprint is not None
        assert [*store.fingerprint.encodings] == kept
    with MemoryStore() as other:
        other.bind(replace(HERE, encodings=[old]))
        other.copy_from(store)
        assert other.fingerprint is not None
        assert [*other.fingerprint.encodings] == [new, old]


@pytest.mark.parametrize("target", KINDS)
def test_documents_move_between_stores_unchanged(store: Store, documents: dict[str, torch.Tensor], target: str) -> None:
    fill(store, documents, [{"n": number} for number in range(7)])
    store.bind(HERE)
    with STORES[target]() as other:
        assert other.copy_from(store, batch_tokens=6) == 7
        assert other.search(QUERIES, 20) == store.search(QUERIES, 20)
        assert other.fingerprint == HERE
        assert other.get(["d3"])[0].metadata == {"n": 3}


def test_a_bar_shows_how_many_have_moved(
    store: Store, documents: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, documents)
    with MemoryStore() as other:
        other.copy_from(store, batch_tokens=6)
        assert capsys.readouterr().err == ""
        other.copy_from(store, batch_tokens=6, show_progress=True)
        for impossible in ("9", 0, None):
            with pytest.raises(InputError, match="batch_tokens must be a whole number from 1"):
                other.copy_from(store, batch_tokens=impossible)
        assert "7/7" in capsys.readouterr().err


def test_a_way_to_search_that_is_not_offered_is_refused_beforehand(store: Store) -> None:
    for search in ("fast", *(["first_stage"] if isinstance(store, MemoryStore) else ["centroids"])):
        with pytest.raises(InputError) as beforehand:
            store.check_search(search)  # type: ignore[arg-type]
        with pytest.raises(InputError) as searching:
            store.search(QUERIES, search=search)  # type: ignore[arg-type]
        assert str(beforehand.value) == str(searching.value)
    store.check_search("exact")


def test_only_stores_are_copied(store: Store) -> None:
    with pytest.raises(InputError, match="source must be a store, not str; that of an index is its .store"):
        store.copy_from("elsewhere")  # type: ignore[arg-type]


def test_documents_of_another_model_do_not_move_in(kind: str, store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    store.bind(HERE)
    with STORES[kind]() as other:
        other.bind(THERE)
        with pytest.raises(FingerprintError):
            other.copy_from(store)
        assert other.count() == 0


def test_a_closed_store_says_so(store: Store, documents: dict[str, torch.Tensor]) -> None:
    fill(store, documents)
    store.close()
    store.close()
    calls = [
        lambda: fill(store, documents),
        lambda: store.search(QUERIES),
        lambda: store.get(["d1"]),
        lambda: store.delete(["d1"]),
        lambda: store.set_metadata(["d1"], [{}]),
        lambda: list(store.iter_documents()),
        lambda: store.bind(HERE),
        store.count,
    ]
    for call in calls:
        with pytest.raises(StoreError, match="closed"):
            call()


# -------------------------------------------------------------------------------------------------------------- async


async def test_async_twins_do_the_same(kind: str, store: Store, documents: dict[str, torch.Tensor]) -> None:
    await store.aupsert(list(documents), TokenEmbeddings.from_list(list(documents.values())), list(documents))
    assert await store.acount() == 7
    assert await store.aids(lambda document: document.id == "d3") == ["d3"]
    assert await store.asearch(QUERIES, 3, ids=["d1", "d2"]) == store.search(QUERIES, 3, ids=["d1", "d2"])
    await store.aset_metadata(["d1"], [{"a": 1}])
    assert (await store.aget(["d1"]))[0].metadata == {"a": 1}
    await store.adelete(["d1"])
    assert {document.id async for document in store.aiter_documents()} == set(documents) - {"d1"}
    with STORES[kind]() as other:
        assert await other.acopy_from(store) == 6
    await store.aclose()
    with pytest.raises(StoreError):
        await store.acount()

"""ColBERTRetriever: LangChain's own suite, searching, filters, documents, copies, threads, the event loop."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import ValidationError

import checkpoints
from adapters.drivers import QUERY, TEXTS
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, observed
from colbert_integrations.errors import AddError, FilterError, FingerprintError, InputError, StoreError
from colbert_integrations.index import Search
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore

YEARS = [2019, 2020, 2021, 2022, 2023, 2024]


@pytest.fixture
def documents() -> list[Document]:
    rows = enumerate(zip(TEXTS, YEARS, strict=True))
    return [Document(text, id=f"id-{i}", metadata={"year": year, "place": {"n": i}}) for i, (text, year) in rows]


@pytest.fixture
def retriever(shared_model: ColBERT, documents: list[Document]) -> ColBERTRetriever:
    return ColBERTRetriever(model=shared_model, documents=documents, store=MemoryStore("float32"))


@pytest.fixture
def raw(shared_model: ColBERT) -> dict[str, float]:
    """Brute force in double precision: the raw score of each document, by id."""
    return {f"id-{i}": brute_force(shared_model, QUERY, text) for i, text in enumerate(TEXTS)}


def brute_force(model: ColBERT, query: str, text: str) -> float:
    asked, said = model.encode_query(query)[0].double(), model.encode_document(text)[0].double()
    return (asked @ said.T).max(dim=1).values.sum().item()


def ids(documents: list[Document]) -> list[str | None]:
    return [document.id for document in documents]


def in_order(scores: dict[str, float], k: int) -> list[str]:
    """Ids by score descending, then id; a random checkpoint gives equal texts scores that differ in the last digit."""
    return sorted(scores, key=lambda name: (-round(scores[name], 4), name))[:k]


# ---------------------------------------------------------------------------------------------------------- searching


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_finds_what_brute_force_finds(retriever: ColBERTRetriever, raw: dict[str, float], how: str):
    found = retriever.invoke(QUERY) if how == "invoke" else await retriever.ainvoke(QUERY)
    assert ids(found) == in_order(raw, 4)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("key", ["score", "year"])  # of which the documents have one already
def test_scores_go_under_their_key_on_the_scale_that_was_asked_for(
    retriever: ColBERTRetriever, shared_model: ColBERT, raw: dict[str, float], key: str, normalized: bool
):
    scored = ColBERTRetriever(index=retriever.index, score_key=key, normalize_scores=normalized, k=6)
    divisor = len(shared_model.encode_query(QUERY)[0]) if normalized else 1
    found = {document.id: document.metadata[key] for document in scored.invoke(QUERY)}
    assert found == pytest.approx({name: score / divisor for name, score in raw.items()}, abs=1e-5)
    assert all(type(score) is float for score in found.values())


def test_without_a_key_metadata_is_what_was_stored(retriever: ColBERTRetriever, documents: list[Document]):
    assert sorted(retriever.invoke(QUERY, k=6), key=lambda document: document.id or "") == documents


async def test_threshold_is_on_the_scale_of_the_scores(retriever: ColBERTRetriever, raw: dict[str, float]):
    retriever.normalize_scores = False
    best = in_order(raw, 6)
    between = (raw[best[1]] + raw[best[2]]) / 2
    assert raw[best[1]] - raw[best[2]] > 1e-4
    assert ids(retriever.invoke(QUERY, score_threshold=between)) == best[:2]
    assert ids(await retriever.ainvoke(QUERY, score_threshold=between)) == best[:2]
    retriever.score_threshold = between
    assert ids(retriever.invoke(QUERY)) == best[:2]
    assert retriever.invoke(QUERY, score_threshold=1e9) == []


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
@pytest.mark.parametrize(("name", "said"), [("top_k", r" \(is it k\?\)"), ("colour", "")])
async def test_an_option_that_there_is_not_is_refused(retriever: ColBERTRetriever, how: str, name: str, said: str):
    with pytest.raises(InputError, match=f"a retriever has no option '{name}'{said}; a call takes k, filter, "):
        retriever.invoke(QUERY, **{name: 2}) if how == "invoke" else await retriever.ainvoke(QUERY, **{name: 2})


async def test_k_beyond_the_number_of_documents_finds_all(retriever: ColBERTRetriever):
    assert len(retriever.invoke(QUERY, k=100)) == len(await retriever.ainvoke(QUERY, k=100)) == 6


async def test_an_empty_index_finds_nothing(shared_model: ColBERT):
    empty = ColBERTRetriever(model=shared_model)
    assert empty.invoke(QUERY) == await empty.ainvoke(QUERY) == []
    assert ColBERTRetriever(model=shared_model, documents=[]).invoke(QUERY) == []


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_white_space_around_the_query_does_not_count(checkpoint: Callable[[str], Path], how: str):
    model = ColBERT.shared(checkpoint("native"), device="cpu")  # a layout whose tokenizer counts it
    assert model.encode_query("paris").values.shape != model.encode_query("\n paris\n\n").values.shape
    scored = ColBERTRetriever.from_texts(TEXTS, model=model, score_key="score")
    for query in ("paris", "\n paris\n\n"):
        found = scored.invoke(query) if how == "invoke" else await scored.ainvoke(query)
        assert found == scored.invoke("paris")


@pytest.mark.parametrize("search", get_args(Search))
async def test_search_and_candidates_reach_the_store(
    retriever: ColBERTRetriever, monkeypatch: pytest.MonkeyPatch, search: Any
):
    seen: list[Any] = []
    monkeypatch.setattr(MemoryStore, "check_search", lambda self, search: None)
    monkeypatch.setattr(
        MemoryStore, "search", lambda self, queries, k, filter, **rest: seen.append((k, rest)) or [[]] * len(queries)
    )
    retriever.invoke(QUERY, search=search, candidates=7)
    await retriever.ainvoke(QUERY, search=search, candidates=7)
    ColBERTRetriever(index=retriever.index, search=search, candidates=7).invoke(QUERY)
    assert seen == [(4, {"ids": None, "search": search, "candidates": 7, "texts": [QUERY]})] * 3


def test_unknown_fields_are_errors(shared_model: ColBERT):
    with pytest.raises(ValidationError, match="top_k"):
        ColBERTRetriever(model=shared_model, top_k=1)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"k": 0}, "k"),
        ({"search": "best"}, "search"),
        ({"candidates": 0}, "candidates"),
        ({"store": 3}, "store must be a Store or the location of one"),
        ({"store": "folder"}, "such as 'qdrant.http://"),
        ({"index": "folder"}, "index must be a ColBERTIndex"),
        ({"documents": "text"}, "documents must be a list"),
        ({"documents": ["text"]}, r"documents\[0\] must be a Document, not str"),
    ],
)
def test_an_impossible_field_is_refused_at_once(shared_model: ColBERT, fields: dict[str, Any], named: str):
    with pytest.raises(ValidationError, match=named):
        ColBERTRetriever(**({"model": shared_model} if "index" not in fields else {}), **fields)


@pytest.mark.parametrize("query", [None, 3, ["a"]])
async def test_a_query_that_is_no_text_is_refused(retriever: ColBERTRetriever, query: Any):
    with pytest.raises(InputError, match="query must be a string"):
        retriever.invoke(query)
    with pytest.raises(InputError, match="query must be a string"):
        await retriever.ainvoke(query)


# ------------------------------------------------------------------------------------------------------------ filters


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        ({"year": 2020}, {"id-1"}),
        ({"year": {"$gte": 2020, "$lt": 2022}}, {"id-1", "id-2"}),
        ({"place.n": {"$in": [0, 5]}}, {"id-0", "id-5"}),
        ({"year": 1900}, set()),
        (lambda document: document.page_content.startswith("paris"), {"id-1"}),
        (lambda document: document.metadata["year"] > 2022 and document.id != "id-4", {"id-5"}),
        (lambda document: False, set()),
    ],
)
async def test_filters_of_either_kind(retriever: ColBERTRetriever, filter: Any, wanted: set[str]):
    always = ColBERTRetriever(index=retriever.index, filter=filter, k=6)
    for found in (retriever.invoke(QUERY, filter=filter), await retriever.ainvoke(QUERY, filter=filter)):
        assert set(ids(found)) == wanted
    assert set(ids(always.invoke(QUERY))) == set(ids(await always.ainvoke(QUERY))) == wanted
    assert len(always.invoke(QUERY, filter={})) == 6  # a call's filter takes the place of the field's


def test_a_filter_that_the_language_lacks_is_refused(retriever: ColBERTRetriever):
    with pytest.raises(FilterError, match=r"\$near"):
        retriever.invoke(QUERY, filter={"year": {"$near": 2020}})


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"filter": {"year": {"$near": 2020}}}, r"unknown operator '\$near'"), ({"search": "codes"}, "needs codes")],
)
def test_what_can_not_be_searched_is_refused_before_anything_is_encoded(
    fields: dict[str, Any], said: str, stanford: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ColBERTIndex, "add", None)
    with pytest.raises(ValidationError, match=said):
        ColBERTRetriever.from_texts(["a"], **fields, **stanford)
    with pytest.raises(ValidationError, match=said):
        ColBERTRetriever(documents=[Document("a")], **fields, **stanford)


def test_a_filter_that_changes_documents_leaves_the_index_unchanged(
    retriever: ColBERTRetriever, documents: list[Document]
):
    retriever.invoke(QUERY, filter=lambda document: document.metadata.clear() or True)
    assert retriever.get_by_ids(ids(documents)) == documents


# ---------------------------------------------------------------------------------------------------------- documents


async def test_documents_come_and_go(shared_model: ColBERT, documents: list[Document]):
    retriever = ColBERTRetriever(model=shared_model, k=10)
    assert retriever.add_documents(documents[:2]) == ["id-0", "id-1"]
    assert await retriever.aadd_documents(documents[2:4]) == ["id-2", "id-3"]
    assert set(ids(retriever.invoke(QUERY))) == {"id-0", "id-1", "id-2", "id-3"}
    retriever.delete(["id-0", "not there"])
    await retriever.adelete(["id-3", "not there"])
    assert set(ids(retriever.invoke(QUERY))) == {"id-1", "id-2"}
    assert retriever.get_by_ids(["id-2", "id-0", "id-1"]) == [documents[2], documents[1]]
    assert await retriever.aget_by_ids(["id-2", "id-0", "id-1"]) == [documents[2], documents[1]]


def test_adding_leaves_the_documents_as_they_are(retriever: ColBERTRetriever, documents: list[Document]):
    given = [Document("a new one"), documents[0]]
    before = copy.deepcopy(given)
    retriever.add_documents(given)
    assert given == before


async def test_ids_are_those_given_or_the_documents_or_their_content(shared_model: ColBERT):
    retriever = ColBERTRetriever(model=shared_model)
    mixed = [Document("lions"), Document("lions", id="mine"), Document("lions", metadata={"a": 1})]
    first = retriever.add_documents(mixed)
    assert first[1] == "mine"
    assert len({*first}) == 3
    assert await retriever.aadd_documents(mixed) == first  # the same content has the same id
    assert first[0] == ColBERTIndex(shared_model).add(["lions"])[0]
    assert retriever.add_documents(mixed, ids=["x", "y", "z"]) == ["x", "y", "z"]
    assert len(retriever.index) == 6


def test_an_id_that_is_there_is_replaced(retriever: ColBERTRetriever):
    retriever.add_documents([Document("water", id="id-0")])
    assert retriever.get_by_ids(["id-0"]) == [Document("water", id="id-0")]
    assert len(retriever.index) == 6


async def test_what_is_there_is_encoded_again_only_where_that_is_asked_for(
    retriever: ColBERTRetriever, documents: list[Document]
):
    for options, encoded in (({}, 0), ({"reencode": True}, len(set(TEXTS)))):
        with observed() as sync:
            assert retriever.add_documents(documents, **options) == ids(documents)
        with observed() as twin:
            assert await retriever.aadd_documents(documents, **options) == ids(documents)
        assert (sync.stats.documents_encoded, twin.stats.documents_encoded) == (encoded, encoded)


async def test_a_document_that_cannot_be_stored_is_named_and_the_others_are(shared_model: ColBERT):
    retriever = ColBERTRetriever(model=shared_model)
    bad = Document("b", id="bad", metadata={"when": object()})
    with pytest.raises(AddError, match="bad.*not JSON") as caught:
        retriever.add_documents([Document("a", id="a"), bad, Document("c", id="c")])
    assert (list(caught.value.failures), caught.value.added) == (["bad"], ["a", "c"])
    with pytest.raises(AddError, match="bad.*not JSON"):
        await retriever.aadd_documents([bad, Document("d", id="d")])
    assert ids(retriever.get_by_ids(["a", "bad", "c", "d"])) == ["a", "c", "d"]


def test_what_was_stored_before_a_factory_failed_is_not_lost(shared_model: ColBERT):
    documents = [Document("a", id="a"), Document("b", id="bad", metadata={"when": object()})]
    for make in (ColBERTRetriever.from_documents, ColBERTVectorStore.from_documents):
        with pytest.raises(AddError) as caught:
            make(documents, model=shared_model)
        again = ColBERTRetriever(index=caught.value.index)
        assert ids(again.invoke("a")) == ["a"]
        assert pickle.loads(pickle.dumps(caught.value)).index is None


async def test_adding_what_is_no_list_of_documents_is_refused(retriever: ColBERTRetriever):
    for wrong, named in [("text", "must be a list"), (["text"], r"documents\[0\]"), (Document("a"), "must be a list")]:
        with pytest.raises(InputError, match=named):
            retriever.add_documents(wrong)
        with pytest.raises(InputError, match=named):
            await retriever.aadd_documents(wrong)


async def test_changing_results_leaves_the_index_unchanged(retriever: ColBERTRetriever, documents: list[Document]):
    for found in (retriever.invoke(QUERY), await retriever.ainvoke(QUERY), retriever.get_by_ids(ids(documents))):
        for document in found:
            document.page_content = "overwritten"
            document.metadata["place"]["n"] = "overwritten"
            document.metadata["more"] = True
    assert retriever.get_by_ids(ids(documents)) == documents


def test_changing_what_was_added_leaves_the_index_unchanged(retriever: ColBERTRetriever, documents: list[Document]):
    before = copy.deepcopy(documents)
    documents[0].metadata["place"]["n"] = "overwritten"
    assert retriever.get_by_ids(ids(before)) == before


async def test_makers_from_texts_and_documents(shared_model: ColBERT, documents: list[Document]):
    metadatas = [document.metadata for document in documents]
    names = [document.id for document in documents]
    fields = {"model": shared_model, "k": 6}
    for made in (
        ColBERTRetriever.from_texts(TEXTS, metadatas, names, **fields),
        await ColBERTRetriever.afrom_texts(TEXTS, metadatas, names, **fields),
        ColBERTRetriever.from_documents(documents, **fields),
        await ColBERTRetriever.afrom_documents(documents, **fields),
    ):
        assert sorted(made.invoke(QUERY), key=lambda document: document.id or "") == documents


# ---------------------------------------------------------------------------------------- an index, a store, a folder


def test_an_index_is_shared_and_brings_its_model(retriever: ColBERTRetriever):
    other = ColBERTRetriever(index=retriever.index, k=1)
    assert other.colbert is retriever.colbert
    other.delete(["id-1"])
    assert retriever.get_by_ids(["id-1"]) == []


def test_an_index_with_another_model_or_store_is_refused(retriever: ColBERTRetriever, tiny: ColBERT):
    with pytest.raises(ValidationError, match="leave model out"):
        ColBERTRetriever(index=retriever.index, model=tiny)
    with pytest.raises(ValidationError, match="leave store out"):
        ColBERTRetriever(index=retriever.index, store=MemoryStore())


def test_a_store_is_searched(retriever: ColBERTRetriever, shared_model: ColBERT):
    other = ColBERTRetriever(model=shared_model, store=retriever.index.store)
    assert other.invoke(QUERY) == retriever.invoke(QUERY)


def test_a_store_of_another_model_is_refused(retriever: ColBERTRetriever, checkpoint: Callable[[str], Path]):
    with pytest.raises(FingerprintError):
        ColBERTRetriever(model=checkpoint("pylate"), device="cpu", store=retriever.index.store)


def test_settings_of_the_model_that_are_changed_later_are_refused(retriever: ColBERTRetriever):
    retriever.document_length = 20
    with pytest.raises(InputError, match="model's settings can't be changed"):
        retriever.invoke(QUERY)


def test_a_saved_retriever_finds_the_same(retriever: ColBERTRetriever, shared_model: ColBERT, tmp_path: Path):
    scored = ColBERTRetriever(index=retriever.index, score_key="score", k=6)
    scored.save(tmp_path / "saved")
    for loaded in (
        ColBERTRetriever.load(tmp_path / "saved", score_key="score", k=6),
        ColBERTRetriever.load(tmp_path / "saved", shared_model, score_key="score", k=6),
    ):
        assert loaded.invoke(QUERY) == scored.invoke(QUERY)
        loaded.add_documents([Document("one more", id="more")])
        assert len(loaded.index) == 7
    assert len(scored.index) == 6


def test_loading_with_another_model_or_from_nowhere_is_refused(
    retriever: ColBERTRetriever, checkpoint: Callable[[str], Path], tmp_path: Path
):
    retriever.save(tmp_path / "saved")
    with pytest.raises(FingerprintError):
        ColBERTRetriever.load(tmp_path / "saved", checkpoint("pylate"))
    with pytest.raises(StoreError):
        ColBERTRetriever.load(tmp_path / "nowhere")
    assert ColBERTRetriever.load(tmp_path / "saved", verify=False, device="cpu").invoke(QUERY)
    with pytest.raises(InputError, match="device='nonsense'"):
        ColBERTRetriever.load(tmp_path / "saved", device="nonsense")


# ------------------------------------------------------------------------------------------------- copies and runnables


def test_dumps_and_repr_carry_no_documents(retriever: ColBERTRetriever):
    written = [repr(retriever), retriever.model_dump_json(), json.dumps(dumpd(retriever))]
    assert not [text for text in written if "paris" in text or "ColBERTIndex" in text]
    twin = ColBERTRetriever(**retriever.model_dump())
    assert twin.model_dump() == retriever.model_dump()
    assert twin.invoke(QUERY) == []


def test_pickling_is_refused_with_the_way_out(retriever: ColBERTRetriever):
    with pytest.raises(StoreError, match=r"save\(\) it and load\(\) it"):
        pickle.dumps(retriever)


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda it: it.model_copy(deep=True)])
def test_a_copy_searches_the_same_documents(retriever: ColBERTRetriever, how: Callable[[Any], Any]):
    twin = how(retriever)
    assert twin.index is retriever.index
    assert twin.colbert is retriever.colbert
    assert twin.invoke(QUERY) == retriever.invoke(QUERY)


async def test_what_every_runnable_can_do(retriever: ColBERTRetriever):
    four, one = retriever.invoke(QUERY), retriever.invoke(QUERY, k=1)
    assert four[:1] == one
    assert await retriever.ainvoke(QUERY, k=1) == one
    assert retriever.bind(k=1).invoke(QUERY) == await retriever.bind(k=1).ainvoke(QUERY) == one
    assert retriever.batch([QUERY] * 2) == await retriever.abatch([QUERY] * 2) == [four, four]
    assert retriever.batch([QUERY] * 2, k=1) == [one, one]
    assert retriever.with_retry().invoke(QUERY) == four
    assert list(retriever.stream(QUERY)) == [four]


@pytest.mark.parametrize("early", [True, False])
async def test_configurable_fields_search_the_same_documents(
    retriever: ColBERTRetriever, shared_model: ColBERT, documents: list[Document], early: bool
):
    base = ColBERTRetriever(model=shared_model)
    field = ConfigurableField(id="k")
    configurable = base.configurable_fields(k=field) if early else None
    base.add_documents(documents)
    configurable = configurable or base.configurable_fields(k=field)
    one = retriever.invoke(QUERY, k=1)
    assert configurable.invoke(QUERY, {"configurable": {"k": 1}}) == one
    assert await configurable.ainvoke(QUERY, {"configurable": {"k": 1}}) == one
    assert configurable.invoke(QUERY) == retriever.invoke(QUERY)


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_a_trace_says_which_model_and_store(retriever: ColBERTRetriever, how: str):
    collector = RunCollectorCallbackHandler()
    config: Any = {"callbacks": [collector]}
    found = retriever.invoke(QUERY, config) if how == "invoke" else await retriever.ainvoke(QUERY, config)
    [run] = collector.traced_runs
    assert (run.name, run.run_type, run.outputs["documents"]) == ("ColBERTRetriever", "retriever", found)
    assert {name: value for name, value in run.extra["metadata"].items() if name.startswith("ls_")} == {
        "ls_retriever_name": "colbert",
        "ls_vector_store_provider": "MemoryStore",
        "ls_embedding_provider": "colbert_integrations",
        "ls_embedding_model": retriever.model,
    }


# --------------------------------------------------------------------------------------------- threads and event loop


def a_text(choose: random.Random, most: int) -> str:
    return " ".join(choose.choices(checkpoints.WORDS, k=choose.randint(1, most)))


@pytest.fixture
def many(shared_model: ColBERT) -> ColBERTRetriever:
    choose = random.Random(0)
    texts = [a_text(choose, 60) for _ in range(80)]
    metadatas = [{"even": i % 2 == 0} for i in range(80)]
    return ColBERTRetriever.from_texts(texts, metadatas, model=shared_model, score_key="score")


def scores(documents: list[Document]) -> list[float]:
    return [document.metadata["score"] for document in documents]


async def test_concurrent_searches_equal_sequential_ones(many: ColBERTRetriever):
    choose = random.Random(1)
    asked = [(a_text(choose, 12), {"k": choose.randint(1, 9)}) for _ in range(120)]
    for _, options in asked[::3]:
        options["filter"] = {"even": True}
    wanted = [many.invoke(query, **options) for query, options in asked]
    found = await asyncio.gather(*(many.ainvoke(query, **options) for query, options in asked))
    with ThreadPoolExecutor(max_workers=8) as pool:
        threaded = list(pool.map(lambda one: many.invoke(one[0], **one[1]), asked))
    for mine, theirs, others in zip(wanted, found, threaded, strict=True):
        assert scores(theirs) == pytest.approx(scores(mine), abs=1e-5)
        assert scores(others) == pytest.approx(scores(mine), abs=1e-5)
        assert set(ids(theirs)) == set(ids(others)) == set(ids(mine))


def test_adding_while_others_search_shows_whole_documents_only(many: ColBERTRetriever):
    fresh = [Document(f"lions {i}", id=f"new-{i}", metadata={"number": i}) for i in range(40)]
    known = {document.id: document for document in fresh}
    with ThreadPoolExecutor(max_workers=8) as pool:
        adding = [pool.submit(many.add_documents, [document]) for document in fresh]
        searching = [pool.submit(many.invoke, "lions", k=200) for _ in range(40)]
        for found in (future.result() for future in searching):
            assert 80 <= len(found) <= 120
            new = [document for document in found if document.id in known]
            assert all(document.metadata.pop("score") is not None for document in new)
            assert new == [known[document.id] for document in new]
        assert [future.result() for future in adding] == [[document.id] for document in fresh]
    assert len(many.invoke("lions", k=200)) == 120


@pytest.mark.parametrize("slow", [(ColBERT, "encode_query"), (MemoryStore, "search")], ids=["encode_query", "search"])
async def test_loop_goes_on_while_a_search_blocks(
    retriever: ColBERTRetriever, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, slow: Any
):
    monkeypatch.setattr(*slow, off_loop(getattr(*slow)))
    assert await retriever.ainvoke(QUERY)


@pytest.mark.parametrize(
    ("door", "slow"),
    [
        ("aadd_documents", (MemoryStore, "upsert")),
        ("afrom_texts", (ColBERTIndex, "__init__")),
        ("afrom_documents", (ColBERTIndex, "__init__")),
        ("afrom_documents", (MemoryStore, "upsert")),
        ("adelete", (MemoryStore, "delete")),
        ("aget_by_ids", (MemoryStore, "get")),
    ],
)
async def test_loop_goes_on_while_documents_are_written_and_read(
    retriever: ColBERTRetriever,
    shared_model: ColBERT,
    off_loop: Callable,
    monkeypatch: pytest.MonkeyPatch,
    door: str,
    slow: tuple[Any, str],
):
    monkeypatch.setattr(*slow, off_loop(getattr(*slow)))
    calls = {
        "aadd_documents": lambda: retriever.aadd_documents([Document("a new one")]),
        "afrom_texts": lambda: ColBERTRetriever.afrom_texts(["a"], model=shared_model),
        "afrom_documents": lambda: ColBERTRetriever.afrom_documents([Document("a")], model=shared_model),
        "adelete": lambda: retriever.adelete(["id-0"]),
        "aget_by_ids": lambda: retriever.aget_by_ids(["id-0"]),
    }
    await calls[door]()


@pytest.mark.parametrize("door", ["ainvoke", "aget_by_ids", "asimilarity_search", "aget_by_ids of a store"])
async def test_loop_goes_on_while_documents_are_made(
    retriever: ColBERTRetriever, off_loop: Callable, monkeypatch: pytest.MonkeyPatch, door: str
):
    """Ten thousand of them take longer than a loop may wait."""
    late = off_loop(lambda *args: Document("late"))
    for module in ("retriever", "vector_store"):
        for name in ("document_of", "document_of_hit"):
            monkeypatch.setattr(f"colbert_integrations.langchain.{module}.{name}", late)
    store = ColBERTVectorStore(index=retriever.index)
    calls = {
        "ainvoke": lambda: retriever.ainvoke(QUERY, k=1),
        "aget_by_ids": lambda: retriever.aget_by_ids(["id-0"]),
        "asimilarity_search": lambda: store.asimilarity_search(QUERY, k=1),
        "aget_by_ids of a store": lambda: store.aget_by_ids(["id-0"]),
    }
    assert await calls[door]() == [Document("late")]


async def test_the_first_search_loads_the_model_off_the_event_loop(
    checkpoint: Callable[[str], Path], off_loop: Callable, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ColBERT, "_load", off_loop(ColBERT._load))
    # of a length that no other test's model has: this one is not loaded yet
    retriever = ColBERTRetriever(model=str(checkpoint("stanford")), device="cpu", document_length=21)
    assert not retriever.colbert.loaded
    assert await retriever.ainvoke(QUERY) == []
    assert retriever.colbert.loaded

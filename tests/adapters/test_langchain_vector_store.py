"""ColBERTVectorStore: LangChain's own suite, scores of either kind, its retriever, documents, the event loop."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.tools import StructuredTool
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import schema

from adapters.drivers import QUERY, TEXTS
from adapters.test_langchain_retriever import brute_force, ids, in_order
from colbert_integrations import ColBERT, ColBERTIndex, MemoryStore, observed
from colbert_integrations.errors import AddError, FilterError, FingerprintError, InputError, StoreError
from colbert_integrations.langchain import ColBERTRetriever, ColBERTVectorStore


@pytest.fixture
def documents() -> list[Document]:
    return [Document(text, id=f"id-{i}", metadata={"n": i, "deep": {"n": i}}) for i, text in enumerate(TEXTS)]


@pytest.fixture
def store(shared_model: ColBERT, documents: list[Document]) -> ColBERTVectorStore:
    return ColBERTVectorStore.from_documents(documents, model=shared_model, store=MemoryStore("float32"))


@pytest.fixture
def raw(shared_model: ColBERT) -> dict[str, float]:
    """Brute force in double precision: the raw score of each document, by id."""
    return {f"id-{i}": brute_force(shared_model, QUERY, text) for i, text in enumerate(TEXTS)}


def by_id(scored: list[tuple[Document, float]]) -> dict[str, float]:
    assert all(type(score) is float for _, score in scored)
    return {str(document.id): score for document, score in scored}


# ---------------------------------------------------------------------------------------------------------- searching


async def test_finds_what_brute_force_finds(
    store: ColBERTVectorStore, raw: dict[str, float], documents: list[Document]
):
    found = store.similarity_search(QUERY)
    assert ids(found) == in_order(raw, 4)
    assert found == await store.asimilarity_search(QUERY)
    assert found == [documents[int(str(document.id)[3:])] for document in found]  # without scores
    assert len(store.similarity_search(QUERY, k=100)) == 6


async def test_white_space_around_the_query_does_not_count(checkpoint: Callable[[str], Path]):
    model = ColBERT.shared(checkpoint("native"), device="cpu")  # a layout whose tokenizer counts it
    store = ColBERTVectorStore.from_texts(TEXTS, model=model)
    plain = store.similarity_search_with_score("paris")
    assert store.similarity_search_with_score("\n paris\n\n") == plain
    assert await store.asimilarity_search_with_score("\n paris\n\n") == plain


async def test_scores_are_raw_sums(store: ColBERTVectorStore, raw: dict[str, float]):
    # Ten roundings of float32 for each of 16 query vectors.
    assert by_id(store.similarity_search_with_score(QUERY, k=6)) == pytest.approx(raw, abs=1e-5)
    assert by_id(await store.asimilarity_search_with_score(QUERY, k=6)) == pytest.approx(raw, abs=1e-5)


async def test_relevance_scores_are_means_over_the_query(
    store: ColBERTVectorStore, shared_model: ColBERT, raw: dict[str, float]
):
    count = len(shared_model.encode_query(QUERY)[0])
    wanted = {name: score / count for name, score in raw.items()}
    assert by_id(store.similarity_search_with_relevance_scores(QUERY, k=6)) == pytest.approx(wanted, abs=1e-5)
    assert by_id(await store.asimilarity_search_with_relevance_scores(QUERY, k=6)) == pytest.approx(wanted, abs=1e-5)


async def test_a_perfect_match_is_not_beyond_one():
    # Without markers and expansion a text matches itself to the last digit, and rounding goes either way.
    model = ColBERT.shared("bundled/all-MiniLM-L6-v2", device="cpu")
    store = ColBERTVectorStore.from_texts(TEXTS, model=model, store=MemoryStore("float32"))
    for text in TEXTS:  # a score beyond 1 is a warning, and warnings are errors
        [(_, score), *_] = store.similarity_search_with_relevance_scores(text)
        [(_, other), *_] = await store.asimilarity_search_with_relevance_scores(text)
        assert 1 - 1e-5 < score <= 1
        assert other == score


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
async def test_its_retriever_searches_and_cuts_at_a_threshold(
    store: ColBERTVectorStore, shared_model: ColBERT, raw: dict[str, float], how: str
):
    best, count = in_order(raw, 6), len(shared_model.encode_query(QUERY)[0])
    threshold = (raw[best[1]] + raw[best[2]]) / 2 / count
    similar = store.as_retriever(search_kwargs={"k": 3, "filter": {"n": {"$gt": 0}}})
    cut = store.as_retriever(
        search_type="similarity_score_threshold", search_kwargs={"score_threshold": threshold, "k": 6}
    )
    for retriever, wanted in ((similar, [name for name in best if name != "id-0"][:3]), (cut, best[:2])):
        found = retriever.invoke(QUERY) if how == "invoke" else await retriever.ainvoke(QUERY)
        assert ids(found) == wanted


async def test_mmr_is_refused_with_the_reason(store: ColBERTVectorStore):
    retriever = store.as_retriever(search_type="mmr")
    with pytest.raises(NotImplementedError, match="one for each token"):
        retriever.invoke(QUERY)
    with pytest.raises(NotImplementedError, match="one for each token"):
        await retriever.ainvoke(QUERY)


async def test_a_search_by_one_vector_is_refused_with_the_reason(store: ColBERTVectorStore):
    with pytest.raises(NotImplementedError, match="one vector for each token"):
        store.similarity_search_by_vector([0.0])
    with pytest.raises(NotImplementedError, match="one vector for each token"):
        await store.asimilarity_search_by_vector([0.0])


@pytest.mark.parametrize(
    ("filter", "wanted"),
    [
        ({"n": {"$in": [1, 2]}}, {"id-1", "id-2"}),
        ({"deep.n": 5}, {"id-5"}),
        (lambda document: document.metadata["n"] < 1 or document.page_content == "lions", {"id-0", "id-5"}),
        ({"n": 77}, set()),
        (lambda document: False, set()),
    ],
)
async def test_filters_of_either_kind(store: ColBERTVectorStore, filter: Any, wanted: set[str]):
    assert set(ids(store.similarity_search(QUERY, k=6, filter=filter))) == wanted
    assert set(ids(await store.asimilarity_search(QUERY, k=6, filter=filter))) == wanted
    assert set(by_id(store.similarity_search_with_score(QUERY, k=6, filter=filter))) == wanted
    assert set(by_id(store.similarity_search_with_relevance_scores(QUERY, k=6, filter=filter))) == wanted


@pytest.mark.parametrize("search", ["similarity_search", "similarity_search_with_score"])
async def test_what_cannot_be_used_is_refused(store: ColBERTVectorStore, search: str):
    for wrong, error, named in [
        ({"query": None}, InputError, "query must be a string"),
        ({"query": QUERY, "k": 0}, InputError, "k"),
        ({"query": QUERY, "filter": {"n": {"$near": 1}}}, FilterError, r"\$near"),
        ({"query": QUERY, "top_k": 1}, InputError, "takes k, filter, search and candidates, not top_k"),
        ({"query": QUERY, "score_threshold": 0.3}, InputError, "search_type='similarity_score_threshold'"),
    ]:
        with pytest.raises(error, match=named):
            getattr(store, search)(**wrong)
        with pytest.raises(error, match=named):
            await getattr(store, f"a{search}")(**wrong)


async def test_search_and_candidates_reach_the_store(store: ColBERTVectorStore, monkeypatch: pytest.MonkeyPatch):
    seen: list[Any] = []
    monkeypatch.setattr(
        MemoryStore, "search", lambda self, queries, k, filter, **rest: seen.append(rest) or [[]] * len(queries)
    )
    store.similarity_search(QUERY, search="centroids", candidates=7)
    await store.asimilarity_search_with_score(QUERY, search="centroids", candidates=7)
    assert seen == [{"ids": None, "search": "centroids", "candidates": 7, "texts": [QUERY]}] * 2


@pytest.mark.parametrize(
    "search", ["similarity_search", "similarity_search_with_score", "similarity_search_with_relevance_scores"]
)
async def test_a_search_is_a_tool(store: ColBERTVectorStore, search: str):
    method, twin = getattr(store, search), getattr(store, f"a{search}")
    framework = StructuredTool.from_function(getattr(InMemoryVectorStore(DeterministicFakeEmbedding(size=4)), search))
    assert StructuredTool.from_function(coroutine=twin).args.keys() == framework.args.keys()
    tool = StructuredTool.from_function(method, coroutine=twin)
    assert tool.args.keys() == framework.args.keys() >= {"query", "k"}
    found = method(QUERY, k=2)
    assert tool.invoke({"query": QUERY, "k": 2}) == await tool.ainvoke({"query": QUERY, "k": 2}) == found


# ---------------------------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("door", ["add", "aadd"])
async def test_adding_gives_ids_and_replaces(store: ColBERTVectorStore, door: str):
    async def add(*args: Any, **options: Any) -> list[str]:
        return await store.aadd_texts(*args, **options) if door == "aadd" else store.add_texts(*args, **options)

    assert await add(["water"], [{"new": True}], ids=["id-0"]) == ["id-0"]
    assert store.get_by_ids(["id-0"]) == [Document("water", id="id-0", metadata={"new": True})]
    [first] = await add(["river"])
    assert await add(iter(["river", "sea"]), ids=[None, "sea"]) == [first, "sea"]
    assert len(store.index) == 8


async def test_what_is_there_is_encoded_again_only_where_that_is_asked_for(
    store: ColBERTVectorStore, documents: list[Document]
):
    given = {"texts": TEXTS, "metadatas": [document.metadata for document in documents], "ids": ids(documents)}

    async def again(**options: Any) -> list[int]:
        encoded = []
        for call in (
            partial(store.add_texts, **given, **options),
            partial(store.aadd_texts, **given, **options),
            partial(store.add_documents, documents, **options),
            partial(store.aadd_documents, documents, **options),
        ):
            with observed() as observation:
                added = call()
                assert (await added if isawaitable(added) else added) == ids(documents)
            encoded.append(observation.stats.documents_encoded)
        return encoded

    assert await again() == [0] * 4
    assert await again(reencode=True) == [len(set(TEXTS))] * 4


async def test_a_text_that_cannot_be_stored_is_named_and_the_others_are(store: ColBERTVectorStore):
    bad: Any = [{}, {"when": object()}]
    with pytest.raises(AddError, match="bad.*not JSON"):
        store.add_texts(["a", "b"], bad, ids=["good", "bad"])
    with pytest.raises(AddError, match="bad.*not JSON"):
        await store.aadd_texts(["a", "b"], bad, ids=["fine", "bad"])
    assert ids(store.get_by_ids(["good", "bad", "fine"])) == ["good", "fine"]


async def test_adding_what_is_no_list_of_documents_is_refused(
    store: ColBERTVectorStore, shared_model: ColBERT, documents: list[Document]
):
    # A generator, such as a loader's lazy_load, would be used up before all of it was taken.
    for given, said in (
        (lambda: iter(documents), "documents must be a list, not list_iterator"),
        (lambda: ["text"], r"documents\[0\] must be a Document, not str"),
        (lambda: [schema.Document(text="a")], r"documents\[0\] must be a Document, not llama_index\.\S+\.Document$"),
    ):
        for add in (store.add_documents, partial(ColBERTVectorStore.from_documents, model=shared_model)):
            with pytest.raises(InputError, match=said):
                add(given())
        for aadd in (store.aadd_documents, partial(ColBERTVectorStore.afrom_documents, model=shared_model)):
            with pytest.raises(InputError, match=said):
                await aadd(given())


async def test_ids_are_those_given_or_the_documents_own(store: ColBERTVectorStore):
    given = [Document("water", id="own"), Document("river")]
    for found in (store.add_documents(given), await store.aadd_documents(given, ids=None)):
        assert found == ["own", store.add_texts(["river"])[0]]
    assert store.add_documents(given, ids=["a", "b"]) == await store.aadd_documents(given, ids=["a", "b"]) == ["a", "b"]
    assert store.add_documents(given, ids=[None, "c"]) == await store.aadd_documents(given, ids=[None, "c"])
    assert store.add_documents(given, ids=[None, "c"]) == ["own", "c"]
    assert store.add_documents(given, ids=(name for name in "ab")) == ["a", "b"]
    with pytest.raises(AddError, match="an id must be a string that is not empty, not ''"):
        store.add_documents(given, ids=["", "c"])  # which is no way to say None
    with pytest.raises(InputError, match="ids must be a list, not str"):
        store.add_documents(given, ids="ab")
    with pytest.raises(InputError, match="2 documents but 1 ids"):
        store.add_documents(given, ids=["a"])


async def test_deleting_says_so_and_wants_ids(store: ColBERTVectorStore):
    assert store.delete(["id-0", "not there"]) is True
    assert await store.adelete(["id-1"]) is True
    assert ids(await store.aget_by_ids([f"id-{i}" for i in range(6)])) == ["id-2", "id-3", "id-4", "id-5"]
    with pytest.raises(InputError, match="needs the ids"):
        store.delete()
    with pytest.raises(InputError, match="needs the ids"):
        await store.adelete()


async def test_changing_results_leaves_the_store_unchanged(store: ColBERTVectorStore, documents: list[Document]):
    names = [str(document.id) for document in documents]
    for found in (
        store.similarity_search(QUERY),
        await store.asimilarity_search(QUERY),
        store.get_by_ids(names),
        await store.aget_by_ids(names),
    ):
        for document in found:
            document.page_content, document.metadata["deep"]["n"] = "overwritten", "overwritten"
    assert store.get_by_ids(names) == documents


async def test_a_document_that_the_store_has_no_text_for_comes_without(shared_model: ColBERT):
    store = ColBERTVectorStore(shared_model)
    store.index.store.upsert(["a"], shared_model.encode_document("paris"), metadatas=[{"n": 1}])
    for found in (
        store.similarity_search(QUERY, filter=lambda document: document.page_content == ""),
        await store.asimilarity_search(QUERY),
        store.get_by_ids(["a"]),
        await store.aget_by_ids(["a"]),
    ):
        assert found == [Document("", id="a", metadata={"n": 1})]


async def test_makers(shared_model: ColBERT, documents: list[Document]):
    metadatas, names = [document.metadata for document in documents], [str(document.id) for document in documents]
    for made in (
        ColBERTVectorStore.from_texts(TEXTS, None, metadatas, ids=names, model=shared_model),
        await ColBERTVectorStore.afrom_texts(TEXTS, None, metadatas, ids=names, model=shared_model),
        ColBERTVectorStore.from_documents(documents, model=shared_model),
        await ColBERTVectorStore.afrom_documents(documents, model=shared_model),
    ):
        assert made.get_by_ids(names) == documents


async def test_makers_of_documents_take_ids_that_go_before_the_documents_own(shared_model: ColBERT):
    given = [Document("water", id="own", metadata={"n": 1}), Document("river")]
    for made in (
        ColBERTVectorStore.from_documents(given, ids=["a", "b"], model=shared_model),
        await ColBERTVectorStore.afrom_documents(given, ids=["a", "b"], model=shared_model),
    ):
        assert made.index.store.ids() == ["a", "b"]
        assert made.get_by_ids(["b", "a"]) == [Document("river", id="b"), Document("water", id="a", metadata={"n": 1})]


async def test_an_embedding_is_refused(shared_model: ColBERT, documents: list[Document]):
    unused = DeterministicFakeEmbedding(size=3)
    for make in (ColBERTVectorStore.from_texts, ColBERTVectorStore.from_documents):
        with pytest.raises(InputError, match="embedding must be None"):
            make([], unused, model=shared_model)
    for amake in (ColBERTVectorStore.afrom_texts, ColBERTVectorStore.afrom_documents):
        with pytest.raises(InputError, match="embedding must be None"):
            await amake([], unused, model=shared_model)


# --------------------------------------------------------------------------------------------------- an index, a folder


def test_an_index_is_shared_with_a_retriever(store: ColBERTVectorStore):
    retriever = ColBERTRetriever(index=store.index)
    assert retriever.invoke(QUERY) == store.similarity_search(QUERY)
    assert ColBERTVectorStore(index=store.index).similarity_search(QUERY) == store.similarity_search(QUERY)
    same = ColBERTVectorStore(store.index.model, store.index.store, store.index)  # which contradict nothing
    assert same.index is store.index


def test_a_store_is_used_also_where_no_model_is_named():
    kept = MemoryStore()
    store = ColBERTVectorStore(store=kept)
    assert store.index.store is kept
    assert store.index.model is ColBERT.shared()


def test_arguments_that_contradict_are_refused(store: ColBERTVectorStore, tiny: ColBERT):
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"index": store.index, "model": tiny}, "leave model out"),
        ({"index": store.index, "store": MemoryStore()}, "leave store out"),
        ({"index": store}, "must be a ColBERTIndex"),
        ({"store": store}, "must be a Store"),
    ]
    for arguments, named in wrong:
        with pytest.raises(InputError, match=named):
            ColBERTVectorStore(**arguments)
    with pytest.raises(TypeError, match="embedding_function"):
        ColBERTVectorStore(embedding_function=None)  # type: ignore[call-arg]


def test_a_saved_store_finds_the_same(
    store: ColBERTVectorStore, shared_model: ColBERT, checkpoint: Callable[[str], Path], tmp_path: Path
):
    store.save(tmp_path / "saved")
    for loaded in (
        ColBERTVectorStore.load(tmp_path / "saved"),
        ColBERTVectorStore.load(tmp_path / "saved", shared_model),
    ):
        assert loaded.similarity_search_with_score(QUERY, k=6) == store.similarity_search_with_score(QUERY, k=6)
    with pytest.raises(FingerprintError):
        ColBERTVectorStore.load(tmp_path / "saved", checkpoint("pylate"))
    with pytest.raises(InputError, match="device='nonsense'"):
        ColBERTVectorStore.load(tmp_path / "saved", verify=False, device="nonsense")


def test_pickling_is_refused_with_the_way_out(store: ColBERTVectorStore):
    with pytest.raises(StoreError, match=r"save\(\) it and load\(\) it"):
        pickle.dumps(store)


def test_repr_says_what_is_in_it_but_no_text(store: ColBERTVectorStore):
    assert "ColBERTVectorStore(ColBERTIndex(" in repr(store)
    assert "documents=6" in repr(store)
    assert "paris" not in repr(store)


# ----------------------------------------------------------------------------------------------------------- event loop


@pytest.mark.parametrize(
    ("door", "slow"),
    [
        ("asimilarity_search", (ColBERT, "encode_query")),
        ("asimilarity_search", (MemoryStore, "search")),
        ("asimilarity_search_with_score", (MemoryStore, "search")),
        ("asimilarity_search_with_relevance_scores", (MemoryStore, "search")),
        ("aadd_texts", (MemoryStore, "upsert")),
        ("aadd_documents", (MemoryStore, "upsert")),
        ("afrom_texts", (ColBERTIndex, "__init__")),
        ("afrom_documents", (ColBERTIndex, "__init__")),
        ("afrom_documents", (MemoryStore, "upsert")),
        ("adelete", (MemoryStore, "delete")),
        ("aget_by_ids", (MemoryStore, "get")),
    ],
)
async def test_loop_goes_on_while_a_call_blocks(
    store: ColBERTVectorStore,
    shared_model: ColBERT,
    off_loop: Callable,
    monkeypatch: pytest.MonkeyPatch,
    door: str,
    slow: tuple[Any, str],
):
    monkeypatch.setattr(*slow, off_loop(getattr(*slow)))
    arguments: dict[str, Any] = {
        "aadd_texts": ["new"],
        "aadd_documents": [Document("new")],
        "afrom_texts": ["a"],
        "afrom_documents": [Document("a")],
        "adelete": ["id-0"],
        "aget_by_ids": ["id-0"],
    }
    options = {"model": shared_model} if door.startswith("afrom") else {}
    await getattr(store, door)(arguments.get(door, QUERY), **options)

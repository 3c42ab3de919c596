"""Encoding on a server gives what the same checkpoint gives here; on the double, and on a real vLLM."""

from __future__ import annotations

import threading

import pytest
import torch

import checkpoints
from colbert_integrations import TokenEmbeddings
from colbert_integrations.errors import InputError, RemoteMismatchError, RemoteRefusedError, RemoteUnavailableError
from layouts import LAYOUTS, UNATTENDED
from vllm_double import Double, Fault

# Long ones are cut into windows of 40 tokens.
DOCUMENTS = [*checkpoints.SENTENCES, "", "fox", "a, b; (c)!", " ".join(checkpoints.SENTENCES * 4), "unknown \u4e16"]
QUERIES = ["how does a plane fly?", "", "Paris", "what is the capital of the river in the quick red city of words"]
EXACT, HALF = 1e-5, 1e-3


def assert_same(found: TokenEmbeddings, wanted: TokenEmbeddings, tolerance: float) -> None:
    assert found.lengths == wanted.lengths
    assert found.values.dtype == torch.float32
    # Of a unit vector; what is not normalised, of lengths up to 9 here, errs in proportion to its length.
    lengths = wanted.values.norm(dim=-1, keepdim=True).clamp_min(1)
    torch.testing.assert_close(found.values / lengths, wanted.values / lengths, rtol=0, atol=tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_documents_equal_those_encoded_here(layout: str, remote, local) -> None:
    assert_same(remote(layout).encode_document(DOCUMENTS), local(layout).encode_document(DOCUMENTS), EXACT)


@pytest.mark.filterwarnings("ignore:1 of 4 queries cut")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_queries_equal_those_encoded_here(layout: str, remote, local) -> None:
    assert_same(remote(layout).encode_query(QUERIES), local(layout).encode_query(QUERIES), EXACT)


@pytest.mark.parametrize("layout", ["stanford_attend", "pylate_noexp"])
def test_half_precision_on_the_way_costs_little(layout: str, remote, local) -> None:
    model, here = remote(layout, forward={"embed_dtype": "float16"}), local(layout)
    assert_same(model.encode_document(DOCUMENTS), here.encode_document(DOCUMENTS), HALF)
    assert_same(model.encode_query(QUERIES[:3]), here.encode_query(QUERIES[:3]), HALF)
    # It is half precision that came, or the test would show nothing.
    assert not torch.allclose(
        model.encode_document(DOCUMENTS).values, here.encode_document(DOCUMENTS).values, rtol=0, atol=EXACT
    )


@pytest.mark.parametrize("options", [{"truncate_dim": 8}, {"skiplist_words": ["fox", "."]}, {"document_length": 20}])
@pytest.mark.parametrize("layout", ["stanford", "pylate_noexp"])
def test_what_is_done_with_vectors_stays_here(layout: str, options: dict, remote, local) -> None:
    model, here = remote(layout, **options), local(layout, **options)
    assert_same(model.encode_document(DOCUMENTS), here.encode_document(DOCUMENTS), EXACT)
    assert model.dim == options.get("truncate_dim", checkpoints.DIM)


def test_vectors_that_are_not_normalised_come_as_they_are(remote, local) -> None:
    found = remote("native_raw").encode_document(DOCUMENTS)
    assert found.values.norm(dim=-1).max() > 1.1
    assert_same(found, local("native_raw").encode_document(DOCUMENTS), EXACT / 3)


@pytest.mark.filterwarnings("ignore:.*documents cut at document_length")
def test_documents_are_cut_here_where_that_is_asked_for(remote, local) -> None:
    options = {"long_documents": "truncate"}
    found = remote("stanford", **options).encode_document(DOCUMENTS)
    assert_same(found, local("stanford", **options).encode_document(DOCUMENTS), EXACT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rankings_equal_those_made_here(layout: str, remote, local) -> None:
    found, wanted = (model.rank(QUERIES[0], DOCUMENTS) for model in (remote(layout), local(layout)))
    assert [entry.index for entry in found] == [entry.index for entry in wanted]
    # Sums of vectors that are not of unit length reach hundreds, of which float32 keeps seven digits.
    scores = [entry.score for entry in wanted]
    assert [entry.score for entry in found] == pytest.approx(scores, rel=2**-20, abs=1e-4)


def test_two_thousand_documents_in_one_request_keep_their_order(served, remote, local) -> None:
    documents = [" ".join(checkpoints.WORDS[(7 * i + k) % 50] for k in range(1 + i % 12)) for i in range(2048)]
    model = remote("stanford", batch_tokens=10**6)
    assert_same(model.encode_document(documents), local("stanford").encode_document(documents), EXACT)
    server = served["bert"]
    if isinstance(server, Double):
        assert [len(body["input"]) for path, body in server.asked if path == "/pooling"] == [1, 2048]


def test_two_thousand_documents_in_many_requests_keep_their_order(remote, local) -> None:
    documents = [" ".join(checkpoints.WORDS[(7 * i + k) % 50] for k in range(1 + i % 12)) for i in range(2048)]
    model = remote("pylate_noexp", batch_tokens=512)
    assert_same(model.encode_document(documents), local("pylate_noexp").encode_document(documents), EXACT)


# --------------------------------------------------------------------------------------- what a server can't do, or not


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_queries_whose_expansion_is_not_attended_load_weights(layout: str, remote) -> None:
    model = remote(layout)
    weights = model._ready()._merge._local
    model.encode_document(DOCUMENTS)
    assert weights.probed() is None
    model.encode_query("a fox")
    assert (weights.probed() is not None) == (layout in UNATTENDED)


@pytest.mark.filterwarnings("ignore:1 of 1 queries cut")
@pytest.mark.parametrize("layout", UNATTENDED)
def test_such_queries_can_be_refused(layout: str, remote) -> None:
    model = remote(layout, forward={"queries": "refuse"})
    assert len(model.encode_document("a fox")) == 1
    with pytest.raises(InputError, match="does not attend to its query expansion.*queries='local'"):
        model.encode_query("a fox")
    with pytest.raises(InputError, match="does not attend"):
        model.rank("a fox", ["a fox"])
    # One that fills its length has no expansion.
    assert model.encode_query("fox " * 30).lengths == [16]


def test_a_name_that_is_not_served(served, remote) -> None:
    with pytest.raises(RemoteMismatchError, match="serves 'tiny', not 'another'") as caught:
        remote("stanford", forward={"model": "another"}).encode_document("a")
    assert (caught.value.url, caught.value.status) == (served["bert"].url, None)
    assert len(remote("stanford", forward={"model": "tiny"}).encode_document("a")) == 1


def test_a_key_that_is_missing(served, remote, monkeypatch: pytest.MonkeyPatch) -> None:
    model = remote("stanford", forward={"api_key": None})
    with pytest.raises(RemoteRefusedError, match="/v1/models: 401 Unauthorized. Pass api_key=") as caught:
        model.encode_document("a")
    assert caught.value.status == 401
    model.close()
    monkeypatch.setenv("VLLM_API_KEY", served["bert"].key)
    assert len(model.encode_document("a")) == 1


def test_a_length_that_the_server_does_not_take(remote) -> None:
    with pytest.raises(RemoteMismatchError, match="takes 512 tokens, and document_length is 513.*document_length=512"):
        remote("stanford", document_length=513).encode_document("a")
    assert len(remote("stanford", document_length=512).encode_document("fox " * 600)) == 1


def test_a_server_of_another_vocabulary(remote) -> None:
    with pytest.raises(
        RemoteMismatchError, match="serves another model than .*, or for another task: .* is out of vocabulary"
    ):
        remote("pylate_noexp", family="bert").encode_document("a")


def test_a_server_of_other_weights_is_found_out_where_weights_are_here(remote) -> None:
    model = remote("stanford", family="modernbert")  # whose ids it takes, and whose vectors are as long
    assert len(model.encode_document("a")) == 1
    with pytest.raises(RemoteMismatchError, match=r"gives other vectors than the weights of .* that are loaded here"):
        model.rank("a fox", ["a fox"])


# ------------------------------------------------------------------------------------------------ a server that dies


def test_a_server_that_is_killed_while_it_encodes_and_comes_back(served, remote, local) -> None:
    server, model = served["bert"], remote("stanford", batch_tokens=4096)
    documents = [" ".join(checkpoints.WORDS[(i + k) % 50] for k in range(30)) for i in range(8192)]
    model.encode_document("a fox")
    if isinstance(server, Double):
        server.faults.append(Fault(hold=threading.Event()))  # quick as it is, it should not be done before it dies
    threading.Timer(1.0, server.kill).start()
    with pytest.raises(RemoteUnavailableError, match="attempt 4 of 4") as caught:
        model.encode_document(documents)
    assert caught.value.url == server.url
    server.start()
    assert_same(model.encode_document(DOCUMENTS), local("stanford").encode_document(DOCUMENTS), EXACT)

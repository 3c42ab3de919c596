"""What goes wrong with servers: what is asked again and what is not, who is asked instead, and what a user is told."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

import checkpoints
from colbert_integrations import ColBERT, MemoryStore, index_corpus
from colbert_integrations.errors import (
    InputError,
    RemoteError,
    RemoteMismatchError,
    RemoteRefusedError,
    RemoteUnavailableError,
)
from colbert_integrations.vllm import VLLMForward
from colbert_integrations.vllm.servers import Server, Servers
from colbert_integrations.vllm.settings import ServerSettings
from colbert_integrations.vllm.wire import Failure, read_rows
from vllm_double import NAME, Double, Fault, refuse
from waiting import PATIENCE_S, until, until_async

# As a server answers whose engine has died.
DEAD = {"error": {"message": "EngineDeadError", "type": "InternalServerError", "param": None, "code": 500}}
TEXTS = ["a fox", "the cat runs"]

Model = Callable[..., ColBERT]


@pytest.fixture
def model(double: Double, folder) -> Iterator[Model]:
    """Makes models on the double, and on other servers where these are given."""
    made = []

    def make(*urls: str, layout: str = "stanford", **options) -> ColBERT:
        colbert = {
            name: options.pop(name) for name in ("batch_tokens", "batch_size", "truncate_dim") if name in options
        }
        forward = VLLMForward(urls or double.url, **{"embed_dtype": "float32", **options})
        made.append(forward)
        return ColBERT(folder(layout), device="cpu", forward=forward, **colbert)

    yield make
    for forward in made:
        forward.close()


def encodes(model: ColBERT, local) -> bool:
    """Whether a model gives what it should."""
    found, wanted = model.encode_document(TEXTS), local("stanford").encode_document(TEXTS)
    return torch.allclose(found.values, wanted.values, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- asked again


@pytest.mark.parametrize(
    "fault",
    [
        Fault(500, DEAD),
        Fault(502, "<html>Bad Gateway</html>"),
        Fault(503, {"error": "overloaded"}),
        Fault(504),
        Fault(429, {"detail": "slow down"}, {"Retry-After": "0.01"}),
        Fault(429, "", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Fault(hang_up=True),
    ],
    ids=lambda fault: str(fault.status),
)
@pytest.mark.parametrize("path", ["/pooling", "/v1/models"])
def test_failures_are_asked_again(path: str, fault: Fault, double: Double, model: Model, local) -> None:
    double.faults += [Fault(fault.status, fault.body, fault.headers, hang_up=fault.hang_up, path=path)] * 2
    assert encodes(model(), local)
    assert not double.faults


@pytest.mark.parametrize("path", ["/pooling", "/v1/models"])
def test_requests_that_take_too_long_are_asked_again(path: str, double: Double, model: Model, local) -> None:
    double.faults += [Fault(hold=threading.Event(), path=path)]
    assert encodes(model(timeout=0.5), local)


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        (Fault(500, DEAD), 500, "500 InternalServerError: EngineDeadError"),
        (Fault(429, ""), 429, "429 Too Many Requests"),
        (Fault(hang_up=True), None, "Server disconnected without sending a response"),
    ],
)
def test_but_not_for_ever(fault: Fault, status: int | None, message: str, double: Double, model: Model) -> None:
    double.faults += [fault] * 3
    with pytest.raises(RemoteUnavailableError, match=message) as caught:
        model(retries=2).encode_document(TEXTS)
    assert "attempt 3 of 3" in str(caught.value)
    assert (caught.value.url, caught.value.status) == (double.url, status)
    assert double.count("/pooling") == 3


def test_all_reasons_are_told(double: Double, model: Model) -> None:
    double.faults += [Fault(500, DEAD), Fault(hang_up=True), Fault(hang_up=True)]
    with pytest.raises(RemoteUnavailableError, match=r"500 .*EngineDeadError, then Server disconnected[^,]* \(attempt"):
        model(retries=2).encode_document(TEXTS)


def test_a_server_that_never_answers(double: Double, model: Model) -> None:
    double.faults += [Fault(hold=threading.Event())] * 2
    with pytest.raises(RemoteUnavailableError, match=r"no answer within 0\.2 s \(attempt 2 of 2"):
        model(timeout=0.2, retries=1).encode_document(TEXTS)


def test_a_server_whose_answer_trickles_in(double: Double, model: Model) -> None:
    double.faults.append(Fault(trickle=True))
    with pytest.raises(RemoteUnavailableError, match=r"no answer within 0\.3 s"):
        model(timeout=0.3, retries=0).encode_document(TEXTS)


def test_a_server_that_is_not_there(model: Model) -> None:
    with pytest.raises(RemoteUnavailableError, match="http://127.0.0.1:1: .*onnect.* failed") as caught:
        model("http://127.0.0.1:1", retries=1).encode_document(TEXTS)
    assert caught.value.status is None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(*refuse(400, "BadRequestError", "no such thing").reply), "400 BadRequestError: no such thing"),
        (Fault(401, {"error": "Unauthorized"}), "401 Unauthorized. Pass api_key="),
        (Fault(403, "<html>Forbidden</html>"), "403 <html>Forbidden</html>. Pass api_key="),
        (Fault(404, {"detail": "Not Found"}), "404 Not Found. A vLLM server has /pooling if"),
        (Fault(413, ""), "413 (Request Entity|Content) Too Large"),
        (Fault(422, ["odd"]), r"422 \['odd'\]"),
        (Fault(307, "", {"Location": "/elsewhere"}), "307 Temporary Redirect"),
    ],
)
def test_refusals_are_not_asked_again(fault: Fault, message: str, double: Double, model: Model) -> None:
    asks = model()
    asks.encode_document(TEXTS)
    double.asked.clear()
    double.faults.append(fault)
    with pytest.raises(RemoteRefusedError, match=message) as caught:
        asks.encode_document(TEXTS)
    assert (caught.value.url, caught.value.status) == (double.url, fault.status)
    assert double.count("/pooling") == 1


def test_errors_survive_a_pickle() -> None:
    error = RemoteUnavailableError("no answer", "http://a", 503)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.url, again.status, type(again)) == ("no answer", "http://a", 503, type(error))
    assert isinstance(error, RemoteError)


# ------------------------------------------------------------------------------------------------------- other answers


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/pooling", {"data": []}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": 0, "data": [1.0]}]}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": 0, "data": "no base64"}]}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": 0, "data": "AAAA"}]}, "not give one vector for each token"),
        ("/pooling", {"data": [{"index": 1, "data": "AAAA"}]}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": 0, "data": "AAAA"}] * 2}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": i, "data": "AAAA"} for i in (0, 1)]}, "gave an answer that is not vLLM's"),
        ("/pooling", {"data": [{"index": 0, "data": ""}]}, "not give one vector for each token"),
        ("/pooling", [], "gave an answer that is not vLLM's"),
        ("/v1/models", {"models": []}, "is it a vLLM server?"),
        ("/v1/models", {"data": [{"name": "a"}]}, "is it a vLLM server?"),
        ("/v1/models", [], "is it a vLLM server?"),
    ],
)
def test_answers_that_are_not_vllms(path: str, body: object, message: str, double: Double, model: Model) -> None:
    double.faults.append(Fault(200, body, path=path))
    with pytest.raises(RemoteMismatchError, match=message) as caught:
        model().encode_document(TEXTS)
    assert caught.value.url == double.url


@pytest.mark.parametrize("page", ["<html>hello</html>", '{"data":[{"ind', "[" * 100_000], ids=["html", "cut", "deep"])
@pytest.mark.parametrize("path", ["/pooling", "/v1/models"])
def test_a_page_of_a_proxy_is_asked_again(path: str, page: str, double: Double, model: Model, local) -> None:
    double.faults += [Fault(200, page, path=path)] * 2
    assert encodes(model(), local)
    double.faults += [Fault(200, page, path="/pooling")] * 2
    with pytest.raises(RemoteMismatchError, match="/pooling did not answer with JSON: is it a vLLM server?") as caught:
        model(retries=1).encode_document(TEXTS)
    assert (caught.value.url, caught.value.status) == (double.url, 200)


def test_vectors_that_are_not_of_unit_length_any_more_are_asked_for_again(double: Double, model: Model, local) -> None:
    asks, calls = model(), iter(range(99))
    assert encodes(asks, local)
    double.alter = lambda vectors: vectors * (0.0 if next(calls) == 0 else 1.0)
    assert encodes(asks, local)
    assert next(calls) > 1
    double.alter = lambda vectors: vectors * 0
    with pytest.raises((RemoteUnavailableError, RemoteMismatchError), match="unit length"):
        model(retries=0).encode_document(TEXTS)


@pytest.mark.parametrize("data", [[{"id": NAME, "max_model_len": "512"}], []])
def test_a_limit_that_is_no_number_is_none(data: list, double: Double, model: Model, local) -> None:
    double.faults.append(Fault(200, {"data": data}, path="/v1/models"))
    assert encodes(model(), local)


def test_a_limit_is_that_of_the_name_that_is_asked(double: Double, model: Model, local) -> None:
    data = [{"id": "an-adapter", "max_model_len": 8}, {"id": NAME, "max_model_len": 512}]
    double.faults += [Fault(200, {"data": data}, path="/v1/models") for _ in range(2)]
    assert encodes(model(model=NAME), local)
    with pytest.raises(RemoteMismatchError, match="takes 8 tokens"):
        model(model="an-adapter").encode_document(TEXTS)


def test_a_limit_holds_for_queries_too(double: Double, folder) -> None:
    double.faults.append(Fault(200, {"data": [{"id": NAME, "max_model_len": 15}]}, path="/v1/models"))
    with (
        ColBERT(folder("stanford"), device="cpu", document_length=15, forward=VLLMForward(double.url)) as made,
        pytest.raises(RemoteMismatchError, match="takes 15 tokens, and query_length is 16"),
    ):
        made.encode_document(TEXTS)


@pytest.mark.parametrize("variable", ["ALL_PROXY", "HTTP_PROXY"])
def test_proxy_settings_that_cannot_be_used_are_our_error(
    variable: str, double: Double, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "foo://somewhere:1")
    with pytest.raises(InputError, match="the proxy settings of the environment can't be used"):
        model().encode_document(TEXTS)


@pytest.fixture(params=["VLLM_API_KEY", "ALL_PROXY"])
def broken(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """A variable of the environment, a value that can't be used, and what is said of it."""
    if request.param == "VLLM_API_KEY":
        return request.param, "hush\n", "^VLLM_API_KEY has spaces, line ends"
    return request.param, "foo://somewhere:1", "^the proxy settings of the environment can't be used"


class Corpus:
    """Documents, counted as they are read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[str]:
        for self.read in range(1, 101):
            yield f"document {self.read}"


def test_an_environment_that_cannot_be_used_is_found_before_a_corpus_is_read(
    broken: tuple[str, str, str], model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, value, message = broken
    restored, corpus = pickle.loads(pickle.dumps(model())), Corpus()
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=message):
        index_corpus(corpus, restored, MemoryStore("float32"), window=4)
    assert corpus.read == 0


def test_an_environment_that_was_broken_since_is_no_fault_of_documents(
    broken: tuple[str, str, str], double: Double, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, value, message = broken
    made, corpus = model(), Corpus()
    monkeypatch.setenv(variable, value)
    with pytest.raises(RemoteError, match=message) as caught:
        index_corpus(corpus, made, MemoryStore("float32"), window=4)
    assert corpus.read == 4
    assert (caught.value.url, caught.value.status) == (double.url, None)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda vectors: vectors[:, :8], "vectors of dimension 8, where this checkpoint's have 16"),
        (lambda vectors: vectors * 3, "vectors of length 3 to 3, not of unit length"),
        (lambda vectors: vectors * 1.1, r"vectors of length 1\.1 to 1\.1"),
        (lambda vectors: vectors * 0.9, r"vectors of length 0\.9 to 0\.9"),
        (lambda vectors: torch.cat([vectors[:-1], vectors[-1:] * 3]), "vectors of length 1 to 3"),
        (lambda vectors: vectors * float("nan"), "vectors of length nan"),
    ],
)
def test_vectors_of_another_kind(alter: Callable, message: str, double: Double, model: Model) -> None:
    double.alter = alter
    for options in ({}, {"truncate_dim": 4}):  # which are cut only here
        with pytest.raises(RemoteMismatchError, match=message):
            model(**options).encode_document(TEXTS)


def test_vectors_of_no_dimension_are_not_taken_where_any_is_allowed() -> None:
    answer = {"data": [{"index": 0, "data": ""}]}
    with pytest.raises(RemoteMismatchError, match="does not give one vector for each token") as caught:
        read_rows("http://a", answer, [3], None, "float16")
    assert caught.value.url == "http://a"


def test_servers_of_different_weights_are_not_mixed(double: Double, model: Model, folder) -> None:
    other = Double(folder("stanford"))
    other.alter = lambda vectors: vectors.flip(-1)  # as long, and of another model
    try:
        made = model(double.url, other.url, batch_size=1)
        with pytest.raises(RemoteMismatchError, match="gives other vectors than http://.* gave .cosine") as caught:
            made.encode_document([f"a fox {number}" for number in range(200)])
        assert caught.value.url in (double.url, other.url)
        # The same weights are the same servers' again.
        other.alter = double.alter
        again = model(double.url, other.url, batch_size=1)
        assert len(again.encode_document([f"a fox {number}" for number in range(50)])) == 50
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("alter", "cosine"),
    [
        (lambda vectors: torch.nn.functional.normalize(vectors + vectors.roll(1, -1) / 2, dim=-1), r"0\.[789]"),
        (lambda vectors: torch.cat([vectors[:-1], -vectors[-1:]]), r"-1\.000"),
    ],
)
def test_vectors_that_are_nearly_those_of_the_weights_here(
    alter: Callable, cosine: str, double: Double, model: Model
) -> None:
    made = model()
    made.encode_query("a fox")  # loads the weights
    double.alter = alter
    with pytest.raises(RemoteMismatchError, match=f"gives other vectors than the weights of .*cosine {cosine}"):
        made.encode_document(TEXTS)


def test_a_text_without_tokens_asks_nobody(tmp_path) -> None:
    checkpoints.pylate(tmp_path, specials=False, markers=(), query_prefix="", document_prefix="")
    server = Double(tmp_path)
    forward = VLLMForward(server.url, embed_dtype="float32")
    there, here = ColBERT(tmp_path, device="cpu", forward=forward), ColBERT(tmp_path, device="cpu")
    assert there.encode_document("").lengths == [0]
    assert server.asked == []
    found, wanted = there.encode_document(["", "fox", ""]), here.encode_document(["", "fox", ""])
    assert found.lengths == wanted.lengths
    torch.testing.assert_close(found.values, wanted.values, rtol=0, atol=1e-5)
    forward.close()
    server.kill()


def test_a_server_that_says_no_length_is_taken_at_its_word(double: Double, model: Model, local) -> None:
    double.faults.append(Fault(200, {"data": [{"id": "tiny"}]}, path="/v1/models"))
    assert encodes(model(), local)


def test_a_server_of_several_names_is_asked_for_one(double: Double, model: Model, local) -> None:
    double.names = ["tiny", "an-adapter"]
    assert encodes(model(model="an-adapter"), local)
    assert {body["model"] for path, body in double.asked if path == "/pooling"} == {"an-adapter"}


def test_projections_that_vllm_leaves_a_part_of_out_are_refused_at_once(checkpoint) -> None:
    from colbert_integrations.errors import InputError

    with pytest.raises(InputError, match="residual layers"):
        ColBERT(checkpoint("pylate_layers"), device="cpu", forward=VLLMForward("http://127.0.0.1:1"))


# --------------------------------------------------------------------------------------------------- when it is checked


def test_nothing_is_asked_before_a_text_is_encoded(double: Double, model: Model) -> None:
    made = model()
    assert made.spec.dim == made.dim == checkpoints.DIM
    assert made.fingerprint.dim == checkpoints.DIM
    assert "forward=VLLMForward(['http://127.0.0.1:" in repr(made)
    assert double.asked == []


def test_a_server_is_checked_once(double: Double, model: Model) -> None:
    made = model(batch_size=1)
    made.encode_document(TEXTS * 5)
    made.encode_document(TEXTS)
    assert double.count("/v1/models") == 1
    assert double.count("/pooling") == 1 + 12
    made.encode_query("a fox")  # needs no server
    assert double.count("/v1/models") == 1
    made.encode_document(TEXTS)  # the first one since weights are here to compare with
    made.encode_document(TEXTS)
    assert double.count("/v1/models") == 2


def test_a_server_that_failed_is_checked_again(double: Double, model: Model) -> None:
    made = model(model="tiny", retries=0)
    made.encode_document(TEXTS)
    double.kill()
    with pytest.raises(RemoteUnavailableError):
        made.encode_document(TEXTS)
    double.names = ["another"]
    double.start()
    with pytest.raises(RemoteMismatchError, match="serves 'another', not 'tiny'"):
        made.encode_document(TEXTS)
    double.names = ["tiny"]
    assert len(made.encode_document(TEXTS)) == 2


@pytest.fixture
def eight(double: Double, model: Model) -> Callable[[Fault], tuple[Server, list[BaseException | None]]]:
    """Sends eight requests, seven of which wait while the first checks the server and meets a fault.

    Gives the server as it is seen here, and the error of each request.
    """

    def send(fault: Fault) -> tuple[Server, list[BaseException | None]]:
        made, hold = model(retries=0), threading.Event()
        double.faults.append(replace(fault, hold=hold, path="/v1/models"))
        with ThreadPoolExecutor(8) as pool:
            calls = [pool.submit(made.encode_document, "a fox") for _ in range(8)]
            until(lambda: double.under_way)
            [server] = made._forward._link._line._shared._servers
            until(lambda: server.under_way == 8)
            hold.set()
            return server, [call.exception(PATIENCE_S) for call in calls]

    return send


@pytest.mark.parametrize(
    ("patience", "pause", "failed"),
    [
        pytest.param(60.0, 60.0, 1, id="quickly"),
        pytest.param(0.0, 0.0, 1, id="up again"),
        pytest.param(0.0, 60.0, 8, id="slowly"),
    ],
)
def test_a_failure_is_that_of_who_waited_for_it_only_where_it_took_long(
    patience: float, pause: float, failed: int, double: Double, eight: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_integrations.vllm.forward._PATIENCE_S", patience)
    monkeypatch.setattr("colbert_integrations.vllm.servers._FIRST_PAUSE_S", pause)
    server, errors = eight(Fault(503))
    assert sum(error is not None for error in errors) == failed
    assert {type(error) for error in errors} <= {RemoteUnavailableError, type(None)}
    assert double.count("/v1/models") == (1 if failed == 8 else 2)
    assert server.life == 1  # it failed once, whoever was told


def test_a_page_of_a_proxy_is_one_to_all_who_waited(
    double: Double, eight: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_integrations.vllm.forward._PATIENCE_S", 0.0)
    monkeypatch.setattr("colbert_integrations.vllm.servers._FIRST_PAUSE_S", 60.0)
    _, errors = eight(Fault(200, "<html>hello</html>"))
    assert [type(error) for error in errors] == [RemoteMismatchError] * 8
    assert double.count("/v1/models") == 1


# ------------------------------------------------------------------------------------------------------ several servers


@pytest.fixture
def second(folder) -> Iterator[Double]:
    """Another server of the same model."""
    server = Double(folder("stanford"))
    yield server
    server.kill()


def test_several_servers_share_the_work(double: Double, second: Double, model: Model, local) -> None:
    made = model(double.url, second.url, batch_size=1)
    assert made.encode_document(TEXTS * 10).lengths == local("stanford").encode_document(TEXTS * 10).lengths
    assert encodes(made, local)
    assert min(double.count("/pooling"), second.count("/pooling")) > 5
    assert double.count("/v1/models") == second.count("/v1/models") == 1


@pytest.mark.parametrize("first", [True, False])
def test_a_dead_server_is_avoided_while_others_live(first: bool, double: Double, model: Model, local) -> None:
    urls = ["http://127.0.0.1:1", double.url]
    made = model(*(urls if first else urls[::-1]), retries=0, batch_size=1)
    assert encodes(made, local)
    assert made.encode_document(TEXTS * 20).lengths == local("stanford").encode_document(TEXTS * 20).lengths


def test_many_dead_servers_are_all_passed_by(double: Double, model: Model, local) -> None:
    made = model(*(f"http://127.0.0.1:{port}" for port in range(1, 9)), double.url, retries=0)
    assert encodes(made, local)


def test_one_that_dies_leaves_its_work_to_others(double: Double, second: Double, model: Model, local) -> None:
    made = model(double.url, second.url, batch_size=1, concurrency=4)
    made.encode_document(TEXTS)
    double.faults += [Fault(hang_up=True)] * 3
    assert made.encode_document(TEXTS * 20).lengths == local("stanford").encode_document(TEXTS * 20).lengths
    second.kill()
    assert encodes(made, local)


def test_one_of_another_model_among_them_is_an_error(doubles, double: Double, model: Model, folder) -> None:
    other = doubles["modernbert"]
    other.forget()
    other.alter = lambda vectors: vectors[:, :8]
    made = model(double.url, other.url, batch_size=1)
    with pytest.raises(RemoteMismatchError, match="dimension 8"):
        made.encode_document(TEXTS * 4)
    other.forget()


def test_a_server_is_left_alone_for_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("colbert_integrations.vllm.servers.monotonic", lambda: now[0])
    monkeypatch.setattr("colbert_integrations.vllm.servers.random.uniform", lambda low, high: 1.0)
    monkeypatch.setattr("colbert_integrations.vllm.servers._FIRST_PAUSE_S", 0.5)
    server, pauses = Server("http://a"), []
    for _ in range(8):
        server.failed(Failure("no answer"), 0.0)
        server.failed(Failure("one that was asked at the same time"), 0.0)
        pauses.append(server.down_until - now[0])
        now[0] = server.down_until
    assert pauses == [0.5, 1, 2, 4, 8, 16, 30, 30]
    server.answered()
    server.failed(Failure("slow down", 429, wait_s=7.0), 0.0)
    assert server.down_until - now[0] == 7


# -------------------------------------------------------------------------------------------------- one that hangs


class Farm:
    """Servers ``http://a`` and ``http://b``, of which some hang, on a clock of its own.

    Attributes:
        now: The time.
        behaviour: What each does: it answers, fails at once, hangs until its time is over, or waits for ``ends``.
        asked: Who was asked, in order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: object) -> None:
        self.now = 100.0
        monkeypatch.setattr("colbert_integrations.vllm.servers.monotonic", lambda: self.now)
        self.servers = Servers(ServerSettings(("http://a", "http://b"), **settings))
        self.behaviour = {"http://a": "hangs", "http://b": "answers"}
        self.ends = asyncio.Event()
        self.asked: list[str] = []

    async def exchange(self, server: Server) -> str:
        self.asked.append(server.url)
        does = self.behaviour[server.url]
        if does == "waits":
            await self.ends.wait()
            does = self.behaviour[server.url]
        if does == "hangs":
            self.now += 120
        if does == "refuses":
            raise RemoteRefusedError("no", server.url, 400)
        if does != "answers":
            raise Failure(does)
        return server.url

    async def ask(self, count: int = 1, *, after: float = 60) -> set[str]:
        """Send requests at the same time, after a pause; gives who answered."""
        self.asked.clear()
        self.now += after
        calls = asyncio.gather(*(self.servers.anywhere(self.exchange) for _ in range(count)))
        return set(await asyncio.wait_for(calls, PATIENCE_S))

    async def settle(self) -> None:
        """Let a trial end."""
        await asyncio.gather(*(server.trial for server in self.servers._servers if server.trial))


@pytest.fixture
async def farm(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    """One whose first server has kept a request waiting."""
    made = Farm(monkeypatch)
    assert await made.ask() == {"http://b"}
    assert made.asked == ["http://a", "http://b"]
    yield made
    await made.servers.aclose()


async def test_a_server_that_hangs_keeps_one_request_waiting_and_no_other(farm: Farm) -> None:
    farm.behaviour["http://a"] = "waits"
    for copies in (1, 0, 0):
        assert await farm.ask(20) == {"http://b"}  # whom nobody would answer who waited for a
        assert farm.asked.count("http://a") == copies
    farm.behaviour["http://a"] = "hangs"
    farm.ends.set()
    await farm.settle()
    for after, copies in ((0, 0), (60, 1)):
        assert await farm.ask(20, after=after) == {"http://b"}
        assert farm.asked.count("http://a") == copies


async def test_a_trial_takes_no_request_s_place(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm(monkeypatch, concurrency=1)
    for does in ("hangs", "waits"):
        farm.behaviour["http://a"] = does
        assert await farm.ask(3) == {"http://b"}
    await farm.servers.aclose()


@pytest.mark.parametrize("does", ["answers", "refuses"])
async def test_a_server_that_hung_is_asked_again_once_it_answers(does: str, farm: Farm) -> None:
    farm.behaviour["http://a"] = does
    assert await farm.ask() == {"http://b"}
    await farm.settle()
    farm.behaviour["http://a"] = "answers"
    assert await farm.ask(2) == {"http://a", "http://b"}


async def test_a_server_that_hung_is_not_asked_where_another_fails_for_a_moment(farm: Farm) -> None:
    farm.behaviour |= {"http://a": "waits", "http://b": "waits"}
    call = asyncio.ensure_future(farm.ask(2))
    await until_async(lambda: len(farm.asked) == 3)  # the copy and both requests
    farm.servers._servers[1].failed(Failure("503"), 0.0)
    farm.behaviour["http://b"] = "answers"
    assert await asyncio.wait_for(farm.servers.anywhere(farm.exchange), PATIENCE_S) == "http://b"
    farm.ends.set()
    assert await call == {"http://b"}


async def test_a_server_that_hung_is_asked_after_a_pause_in_which_it_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm(monkeypatch, retries=0)
    assert await farm.ask() == {"http://b"}
    farm.behaviour |= {"http://a": "answers", "http://b": "fails"}
    assert await farm.ask() == {"http://a"}
    assert farm.asked == ["http://b", "http://a", "http://a"]
    await farm.servers.aclose()


async def test_a_server_that_hung_and_now_fails_at_once_is_still_tried_first(farm: Farm) -> None:
    farm.behaviour["http://a"] = "fails"
    for _ in range(3):
        assert await farm.ask() == {"http://b"}
        await farm.settle()
        assert farm.asked == ["http://b", "http://a"]


async def test_where_all_hang_they_are_asked_as_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm(monkeypatch, retries=0)
    farm.behaviour["http://b"] = "hangs"
    for _ in range(2):
        with pytest.raises(RemoteUnavailableError, match="attempt 2 of 2"):
            await farm.ask()
        assert farm.asked == ["http://a", "http://b"]
    farm.behaviour["http://a"] = "answers"
    assert await farm.ask() == {"http://a"}
    await farm.servers.aclose()


async def test_a_server_that_hung_is_asked_before_a_call_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    farm = Farm(monkeypatch, retries=0)
    assert await farm.ask() == {"http://b"}
    farm.behaviour |= {"http://a": "waits", "http://b": "fails"}  # it is well, but slower than all pauses
    call = asyncio.ensure_future(farm.ask())
    await until_async(lambda: farm.asked.count("http://a") == 2)  # the copy, and the call's last try
    farm.behaviour["http://a"] = "answers"
    farm.ends.set()
    assert await call == {"http://a"}
    await farm.servers.aclose()


async def test_a_copy_that_can_not_be_made_here_is_no_news_of_asyncio(farm: Farm) -> None:
    def broken(server: Server):
        if server.url == "http://a":
            raise ValueError("weights that can't be read")
        return farm.exchange(server)

    farm.now += 60
    assert await farm.servers.anywhere(broken) == "http://b"
    [trial] = [server.trial for server in farm.servers._servers if server.trial]
    await until_async(trial.done)
    assert trial.exception() is None
    assert await farm.servers.anywhere(broken) == "http://b"
    assert farm.servers._servers[0].trial is trial, "not again at once"


def test_closing_calls_a_trial_off(
    double: Double, second: Double, model: Model, local, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colbert_integrations.vllm.servers._QUICK_S", 0.0)  # whoever fails now hangs
    hangs = threading.Event()
    double.faults += [Fault(503, path="/v1/models"), Fault(hold=hangs, path="/v1/models")]
    made = model(double.url, second.url)
    assert encodes(made, local)
    until(lambda: encodes(made, local) and double.count("/v1/models") >= 2)
    until(lambda: double.under_way == 1)  # what hangs there, while all others have been answered
    made.close()
    until(lambda: double.given_up == 1)

"""Calls at the same time, calls that are given up, and the life of connections, threads, copies and pickles."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import checkpoints
from colbert_integrations import ColBERT
from colbert_integrations.encoder.remote import _UnderWay
from colbert_integrations.errors import InputError
from colbert_integrations.vllm import VLLMForward, VLLMScorer
from colbert_integrations.vllm.link import Link
from colbert_integrations.vllm.servers import Servers
from colbert_integrations.vllm.settings import ServerSettings
from vllm_double import Double, Fault
from waiting import PATIENCE_S, is_in, until, until_async

TEXTS = ["a fox", "the cat runs"]


@pytest.fixture
def forward(double: Double) -> Iterator[Callable[..., VLLMForward]]:
    made = []

    def make(**options) -> VLLMForward:
        made.append(VLLMForward(double.url, **{"embed_dtype": "float32", **options}))
        return made[-1]

    yield make
    for forward in made:
        forward.close()


@pytest.fixture
def model(forward, folder) -> Callable[..., ColBERT]:
    """Makes models of a layout on the double."""

    def make(layout: str = "stanford", **options) -> ColBERT:
        own = {name: options.pop(name) for name in ("batch_tokens", "batch_size") if name in options}
        return ColBERT(folder(layout), device="cpu", forward=forward(**options), **own)

    return make


@pytest.fixture
def threads() -> Callable[[], list[threading.Thread]]:
    """Gives the threads with connections that the test has made and that have not ended."""
    before = threading.enumerate()
    return lambda: [t for t in threading.enumerate() if t.name == "colbert-vllm" and t not in before]


# -------------------------------------------------------------------------------------------------- at the same time


@pytest.mark.parametrize("layout", ["stanford", "stanford_attend"])
def test_ranks_from_many_threads_equal_those_in_sequence(layout: str, model) -> None:
    made = model(layout, batch_tokens=200)
    requests = [
        (f"{checkpoints.WORDS[i]} {checkpoints.WORDS[i + 1]}", [checkpoints.WORDS[(i * k) % 60] for k in range(1, 9)])
        for i in range(40)
    ]
    wanted = [made.rank(*request) for request in requests]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda request: made.rank(*request), requests))
    for ours, theirs in zip(found, wanted, strict=True):
        assert [entry.index for entry in ours] == [entry.index for entry in theirs]
        assert [entry.score for entry in ours] == pytest.approx([entry.score for entry in theirs], abs=1e-4)


def test_no_more_requests_are_under_way_than_allowed(double: Double, model) -> None:
    made, hold = model(concurrency=3, batch_size=1), threading.Event()
    made.encode_document("a")  # the check is done
    double.faults += [Fault(hold=hold)] * 12
    double.most_under_way = 0
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(made.encode_document, TEXTS * 3) for _ in range(2)]
        until(lambda: double.under_way == 3)
        hold.set()
        assert [len(call.result(PATIENCE_S)) for call in calls] == [6, 6]
    assert double.most_under_way == 3


def test_a_query_does_not_wait_for_a_corpus(double: Double, model, monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("stanford_attend", concurrency=2, batch_size=1)
    made.encode_document("a")
    first, others, submitted = threading.Event(), threading.Event(), threading.Event()
    double.faults += [Fault(hold=first), Fault(hold=others), Fault(hold=first), *[Fault(hold=others)] * 20]
    with ThreadPoolExecutor(2) as pool:
        corpus = pool.submit(made.encode_document, TEXTS * 10)
        until(lambda: double.under_way == 2)
        connection = made._ready()._merge._connection
        submit = connection.submit
        monkeypatch.setattr(connection, "submit", lambda sequences: [submit(sequences), submitted.set()][0])
        query = pool.submit(made.encode_query, "a fox")
        submitted.wait(PATIENCE_S)
        first.set()  # one of the corpus ends, and who waits for its place is the query
        assert len(query.result(PATIENCE_S)) == 1
        assert not corpus.done()
        others.set()
        assert len(corpus.result(PATIENCE_S)) == 20


async def test_the_event_loop_goes_on_while_a_server_thinks(double: Double, model) -> None:
    made, hold = model("stanford_attend"), threading.Event()
    made.encode_document("a")
    double.faults.append(Fault(hold=hold))
    task = asyncio.create_task(made.arank("a fox", TEXTS))
    await until_async(lambda: double.under_way)
    hold.set()  # which nobody would do if the loop waited for the server
    assert len(await asyncio.wait_for(task, PATIENCE_S)) == 2


# ------------------------------------------------------------------------------------------------------------ given up


async def test_a_cancelled_call_returns_at_once_and_calls_its_requests_off(double: Double, model, local) -> None:
    made, hold = model("stanford_attend", batch_size=1, concurrency=4), threading.Event()
    made.encode_document("a")
    double.asked.clear()
    double.faults += [Fault(hold=hold)] * 4
    task = asyncio.create_task(made.arank("a fox", [f"{word} cat" for word in checkpoints.WORDS[:30]]))
    await until_async(lambda: double.under_way == 4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until_async(lambda: double.under_way == 0)
    assert double.given_up == 4
    assert double.count("/pooling") == 4  # none of the others has been sent
    assert [entry.index for entry in await made.arank("a fox", TEXTS)] == [
        entry.index for entry in local("stanford_attend").rank("a fox", TEXTS)
    ]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_call_calls_its_requests_off(double: Double, model) -> None:
    made, caught = model(), threading.Event()
    made.encode_document("a")
    double.faults.append(Fault(hold=threading.Event()))

    def interrupt() -> None:
        # The request is there, and has been noted here: one that comes before that leaves it to its end.
        until(lambda: not double.faults and is_in(threading.main_thread(), _UnderWay.__iter__))
        for _ in range(5):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            # One that comes just before the thread goes to sleep is seen when it wakes up, so send another.
            if caught.wait(2):
                return

    killer = threading.Thread(target=interrupt)
    killer.start()
    with pytest.raises(KeyboardInterrupt):
        made.encode_document(TEXTS)
    caught.set()
    killer.join()
    until(lambda: double.under_way == 0)
    assert double.given_up == 1
    assert len(made.encode_document(TEXTS)) == 2


def test_an_error_calls_the_other_requests_off(double: Double, model) -> None:
    made = model(batch_size=1, concurrency=3)
    made.encode_document("a")
    hold = threading.Event()
    double.faults += [Fault(hold=hold), Fault(hold=hold), Fault(400, {"error": "no"})]
    with pytest.raises(Exception, match="400 no"):
        made.encode_document(TEXTS * 10)
    until(lambda: double.under_way == 0)
    assert double.given_up == 2


# ----------------------------------------------------------------------------------------------------- open and closed


def test_closing_ends_connections_and_the_thread_and_the_next_call_opens_them(double: Double, model, threads) -> None:
    with model() as made:
        wanted = made.encode_document(TEXTS)
        assert len(threads()) == 1
        assert double._connections
    until(lambda: not double._connections)
    assert threads() == []
    torch.testing.assert_close(made.encode_document(TEXTS).values, wanted.values, rtol=0, atol=0)
    made.close()
    made.close()


def test_closing_lets_what_runs_end(double: Double, model, threads) -> None:
    made, hold = model(), threading.Event()
    made.encode_document("a")
    double.faults.append(Fault(hold=hold))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(made.encode_document, TEXTS)
        until(lambda: double.under_way == 1)
        made.close()
        assert len(made.encode_document(TEXTS)) == 2  # over a new connection
        hold.set()
        assert len(call.result(PATIENCE_S)) == 2
    made.close()
    until(lambda: not threads())


def test_a_forgotten_model_leaves_no_thread(double: Double, folder, threads) -> None:
    model = ColBERT(folder("stanford"), device="cpu", forward=VLLMForward(double.url))
    model.encode_document(TEXTS)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    until(lambda: not threads() and not double._connections)


def test_a_fork_has_connections_of_its_own_and_a_process_ends_while_a_server_thinks(double: Double, folder) -> None:
    code = f"""
import os, signal, threading
from colbert_integrations import ColBERT
from colbert_integrations.vllm import VLLMForward
model = ColBERT({str(folder("stanford"))!r}, device="cpu", forward=VLLMForward({double.url!r}))
model.encode_document("a")
signal.alarm({PATIENCE_S})
child = os.fork()
if child == 0:
    signal.alarm({PATIENCE_S} // 2)
    os._exit(7 if len(model.encode_document(["a", "b"])) == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(model.encode_document(["a", "b", "c"])) == 3
print("next", flush=True)
input()
threading.Thread(target=model.encode_document, args=("a",), daemon=True).start()
input()
"""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Python 3.12 and later warn of forks where there are threads.
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", code]
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.readline() == "next\n", process.stderr.read()
        double.faults.append(Fault(hold=threading.Event()))
        process.stdin.write("\n")
        process.stdin.flush()
        until(lambda: double.under_way)
        stdout, stderr = process.communicate("\n", timeout=PATIENCE_S)
    assert (process.returncode, stdout, stderr) == (0, "", "")


def test_a_fork_waits_for_no_thread_of_its_parent_that_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    connecting, hold = threading.Event(), threading.Event()

    def connect() -> Servers:
        if os.getpid() != -1:
            connecting.set()
            assert hold.wait(PATIENCE_S)
        return Servers(ServerSettings(("http://a",)))

    async def job(servers: Servers) -> bool:
        return isinstance(servers, Servers)

    link = Link(connect)
    with ThreadPoolExecutor(2) as pool:
        parent = pool.submit(link.start, job)
        assert connecting.wait(PATIENCE_S)
        with monkeypatch.context() as child:
            child.setattr(os, "getpid", lambda: -1)
            assert link.start(job).result(PATIENCE_S)  # while the other one still connects
            link.close()
        hold.set()
        assert parent.result(PATIENCE_S).result(PATIENCE_S)  # it was still connecting
    link.close()


# -------------------------------------------------------------------------------------------------- copies and pickles


def test_pickles_hold_settings_without_the_key(double: Double, folder) -> None:
    forward = VLLMForward(
        [double.url],
        "tiny",
        api_key="a-secret",
        embed_dtype="float32",
        queries="refuse",
        concurrency=3,
        timeout=7,
        retries=1,
    )
    model = ColBERT(folder("stanford"), device="cpu", forward=forward)
    wanted = model.encode_document(TEXTS)
    stored = pickle.dumps(model)
    assert len(stored) < 1500
    assert b"a-secret" not in stored
    restored = pickle.loads(stored)
    again = restored._forward
    assert (again.settings, again.embed_dtype, again.queries) == (forward.settings, "float32", "refuse")
    assert again.settings.api_key is None
    torch.testing.assert_close(restored.encode_document(TEXTS).values, wanted.values, rtol=0, atol=0)
    assert "a-secret" not in repr(forward) + repr(forward.settings) + repr(model)
    model.close()
    restored.close()


def test_copies_share_connections(forward) -> None:
    first = forward()
    assert copy.copy(first) is first
    assert copy.deepcopy([first])[0] is first


def test_the_key_goes_with_every_request(double: Double, model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "that-of-the-environment")
    model(api_key="a-key").encode_document("a")
    assert {headers["authorization"] for headers in double.headers} == {"Bearer a-key"}
    double.headers.clear()
    monkeypatch.setenv("VLLM_API_KEY", "")
    model().encode_document("a")
    monkeypatch.delenv("VLLM_API_KEY")
    model().encode_document("a")
    assert not any("authorization" in headers for headers in double.headers)


@pytest.mark.parametrize("key", ["hush\n", "hushé", "hush hush"])
def test_a_key_of_the_environment_that_cannot_be_sent_is_refused(
    key: str, double: Double, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", key)
    with pytest.raises(InputError, match="^VLLM_API_KEY has spaces.*call .strip") as caught:
        model().encode_document("a")
    assert "hush" not in str(caught.value)
    assert not double.asked


# ------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"urls": []}, "at least one server"),
        ({"urls": [3]}, "must be strings, not int"),
        ({"urls": None}, "the URL of a server or a list of them, not NoneType"),
        ({"urls": "gpu-1:8000"}, "'gpu-1:8000' is not the URL of a server"),
        ({"urls": "ftp://gpu-1"}, "write it as 'http://host:8000'"),
        ({"urls": "http://"}, "not the URL of a server"),
        ({"urls": "http://host:port"}, "'http://host:port' is not a URL"),
        ({"urls": "http://host:99999"}, "'http://host:99999' is not a URL: there is no port 99999"),
        ({"urls": "http://xn--a:8000"}, "'http://xn--a:8000' is not a URL"),
        ({"urls": "http://gpu-1:8000/v1/"}, "ends with /v1"),
        ({"urls": "http://me:hush@a:99999"}, "has no user, password"),
        ({"urls": "http://a/?key=hush"}, "has no user, password, query"),
        ({"urls": "http://a#hush"}, "has no user, password, query or fragment"),
        ({"model": ""}, "model must be the name"),
        ({"model": Path("a")}, "model must be the name"),
        ({"api_key": "clé"}, "api_key has spaces, line ends or non-ASCII"),
        ({"api_key": "a\n"}, "api_key has spaces, line ends or non-ASCII"),
        ({"api_key": " a"}, "call .strip"),
        ({"api_key": 5}, "api_key must be a string, not int"),
        ({"concurrency": 0}, "concurrency must be a whole number from 1, not 0"),
        ({"retries": -1}, "retries must be a whole number from 0, not -1"),
        ({"retries": True}, "not True"),
        ({"timeout": 0}, "timeout must be a positive number of seconds, not 0"),
        ({"timeout": float("inf")}, "not inf"),
        ({"timeout": "5"}, "not '5'"),
    ],
)
@pytest.mark.parametrize("make", [VLLMForward, VLLMScorer])
def test_impossible_settings_are_refused(make: type, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make(**{"urls": "http://a", **options})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embed_dtype": "bfloat16"}, "embed_dtype must be 'float16' or 'float32', not 'bfloat16'"),
        ({"queries": "remote"}, "queries must be 'local' or 'refuse', not 'remote'"),
    ],
)
def test_impossible_ways_to_encode_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        VLLMForward("http://a", **options)


def test_urls_are_taken_in_any_form() -> None:
    assert VLLMForward("http://a/").settings.urls == ("http://a",)
    assert VLLMForward(["http://a", "https://b/path/", "http://a/"]).settings.urls == ("http://a", "https://b/path")
    assert VLLMForward(["http://a", "http://b"]).settings.most_requests == 16
    assert VLLMForward(["http://a", "http://b"], concurrency=5).settings.most_requests == 5


def test_what_colbert_says_of_batches_wins(double: Double, model) -> None:
    model(batch_tokens=12).encode_document(["a fox runs"] * 4)
    assert [len(body["input"]) for path, body in double.asked if path == "/pooling"] == [1, 2, 2]
    double.asked.clear()
    model().encode_document(["a fox runs"] * 1000)  # of six tokens each
    assert [len(body["input"]) for path, body in double.asked if path == "/pooling"] == [1, 1000]


def test_without_httpx_it_is_said_what_to_install() -> None:
    code = """
import sys
sys.modules["httpx"] = None
try:
    import colbert_integrations.vllm
except ImportError as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("MissingExtraError colbert_integrations.vllm needs")
    assert "pip install 'colbert-integrations[vllm]'" in done.stdout

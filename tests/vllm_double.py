"""A server on the loopback that answers as vLLM 0.32 does, by transformers and this project's head, on token ids.

``test_vllm_protocol.py`` sends the same requests to it and to a real server, so that it stays like one. ``faults``
makes it fail as servers do.
"""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from colbert_integrations.checkpoint import SpecOverrides, read_checkpoint
from colbert_integrations.encoder import LoadOptions, TokenSequence, TorchForward
from colbert_integrations.encoder.backbone import load_backbone
from colbert_integrations.encoder.projection import build_projection
from vllm_requests import violations

NAME = "tiny"
Reply = tuple[int, Any]


@dataclass
class Fault:
    """What happens to the next request of a path instead of an answer, or after a while before one.

    Attributes:
        status: Of the answer that it gets. None: its own.
        body: Of that answer; text is sent as it is.
        headers: Of that answer.
        hold: What is waited for before; 20 seconds at most, or until who asked hangs up.
        trickle: Whether the answer comes a byte at a time.
        hang_up: Whether the connection is closed instead.
        path: Which requests.
    """

    status: int | None = None
    body: Any = ""
    headers: dict[str, str] = field(default_factory=dict)
    hold: threading.Event | None = None
    trickle: bool = False
    hang_up: bool = False
    path: str = "/pooling"


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Any) -> None:
        self.reply = status, body


def refuse(status: int, kind: str, message: str, param: str | None = None) -> Refusal:
    return Refusal(status, {"error": {"message": message, "type": kind, "param": param, "code": status}})


class Double:
    """The server.

    Args:
        folder: The checkpoint that it serves.
        max_model_len: Maximum number of tokens of an input.
        key: What ``--api-key`` is, which guards ``/v1`` alone. None: nothing.
    """

    def __init__(self, folder: Path, *, max_model_len: int = 512, key: str | None = None) -> None:
        from transformers import AutoTokenizer

        checkpoint = read_checkpoint(str(folder), folder, SpecOverrides(), allow_unprojected=True)
        backbone = load_backbone(checkpoint, LoadOptions(torch.device("cpu"), torch.float32))
        self._forward = TorchForward(backbone, build_projection(checkpoint), torch.device("cpu"))
        self._vocabulary = backbone.config.vocab_size
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder))
        self._computing = threading.Lock()
        self.max_model_len = max_model_len
        self.key = key
        self.names = [NAME]
        self.faults: deque[Fault] = deque()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.under_way = self.most_under_way = self.given_up = 0
        self.alter: Callable[[torch.Tensor], torch.Tensor] = lambda vectors: vectors
        self._counting = threading.Lock()
        self._connections = set[socket.socket]()
        self._server: ThreadingHTTPServer | None = None
        self._port = 0
        self.start()

    # ------------------------------------------------------------------------------------------------------ lifecycle

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen, on the port that it had before."""
        double = self

        class Handler(_Handler):
            owner = double

        self._server = _Server(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def kill(self) -> None:
        """Be gone at once, with all connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            for connection in tuple(self._connections):
                _hang_up(connection)

    def forget(self) -> None:
        """Be as new for the next test, once nothing is on its way any more."""
        self._wait_for_stragglers()
        self.faults.clear()
        self.asked.clear()
        self.headers.clear()
        self.names, self.alter, self.key, self.max_model_len = [NAME], lambda vectors: vectors, None, 512
        self.most_under_way = self.given_up = 0

    def _wait_for_stragglers(self) -> None:
        """Requests of callers that have gone may still lie in a socket, and would count as the next test's."""
        quiet, until = 0, time.monotonic() + 1
        while quiet < 3 and time.monotonic() < until:
            with contextlib.suppress(ValueError, OSError):  # a connection that ends just now
                unread = select.select(tuple(self._connections), [], [], 0)[0]
                quiet = 0 if unread or self.under_way else quiet + 1
            time.sleep(0.001)

    def count(self, path: str) -> int:
        """Requests of a path so far."""
        return sum(asked == path for asked, _ in self.asked)

    # -------------------------------------------------------------------------------------------------------- answers

    def answer(self, path: str, body: dict[str, Any] | None) -> Reply:
        """What vLLM answers."""
        doors = {"/pooling": self._pool, "/score": self._score}
        if body is None:
            if path == "/v1/models":
                entries = [{"id": name, "object": "model", "max_model_len": self.max_model_len} for name in self.names]
                return 200, {"object": "list", "data": entries}
            return (200, None) if path == "/health" else (404, {"detail": "Not Found"})
        if path not in doors:
            return 404, {"detail": "Not Found"}
        if wrong := violations(path, body):
            return refuse(400, "Bad Request", f"{len(wrong)} validation errors:\n  {'; '.join(wrong)}").reply
        if body.get("model") not in (None, *self.names):
            return refuse(404, "NotFoundError", f"The model `{body['model']}` does not exist.").reply
        try:
            return 200, doors[path](body)
        except Refusal as refusal:
            return refusal.reply

    def _pool(self, body: dict[str, Any]) -> Any:
        if body.get("task", "token_embed") != "token_embed":
            message = f"Unsupported task: {body['task']!r} Supported tasks: ['token_embed'] (parameter=task)"
            raise refuse(400, "BadRequestError", message, "task")
        assert (body["encoding_format"], body["endianness"]) == ("base64", "little")
        matrices = self._embed(body["input"], raw=body.get("use_activation") is False)
        dtype = getattr(torch, body.get("embed_dtype", "float32"))
        data = [
            {"index": index, "object": "pooling", "data": base64.b64encode(matrix.to(dtype).numpy().tobytes()).decode()}
            for index, matrix in enumerate(matrices)
        ]
        return {"id": "pooling-0", "object": "list", "model": NAME, "data": data[::-1], "usage": {}}

    def _embed(self, inputs: list[list[int]], *, raw: bool = False) -> list[torch.Tensor]:
        self._check_inputs(inputs)
        with self._computing:
            vectors = self._forward([TokenSequence(ids, len(ids), [], []) for ids in inputs]).float()
        vectors = self.alter(vectors if raw else torch.nn.functional.normalize(vectors, dim=-1))
        return list(vectors.split([*map(len, inputs)]))

    def _check_inputs(self, inputs: list[list[int]]) -> None:
        if not inputs:
            raise refuse(400, "BadRequestError", "You must pass at least one prompt")
        for ids in inputs:
            if not ids:
                raise refuse(400, "BadRequestError", "The decoder prompt cannot be empty")
            if len(ids) > self.max_model_len:
                most = self.max_model_len
                message = (
                    f"This model's maximum context length is {most} tokens. However, your prompt contains at least "
                    f"{most + 1} input tokens, which exceeds this limit even without any output tokens. Please reduce "
                    f"the length of the input prompt. (parameter=input_tokens, value={most + 1})"
                )
                raise refuse(400, "BadRequestError", message, "input_tokens")
            for token in ids:
                if not 0 <= token < self._vocabulary:
                    raise refuse(400, "BadRequestError", f"Token id {token} is out of vocabulary")

    def _score(self, body: dict[str, Any]) -> Any:
        scores = self._scores(body["queries"], body)
        data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
        return {"id": "score-0", "object": "list", "model": NAME, "data": data, "usage": {}}

    def _scores(self, query: str, body: dict[str, Any]) -> list[float]:
        """The sum of the maxima over all tokens of texts that are tokenised as they come."""
        if not body["documents"]:
            raise refuse(400, "BadRequestError", "At least one text_pair element must be given")
        most = body.get("max_tokens_per_query", 0), body.get("max_tokens_per_doc", 0)
        ids = [self._ids(query, most[0]), *(self._ids(text, most[1]) for text in body["documents"])]
        asked, *documents = self._embed(ids)
        return [float((asked @ document.T).amax(-1).sum()) for document in documents]

    def _ids(self, text: str, most: int) -> list[int]:
        if most:
            offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            text = text[: offsets[most - 1][1]] if len(offsets) > most else text
        return list(self._tokenizer(text)["input_ids"])


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # who finds it full would try again after a second


class _Handler(BaseHTTPRequestHandler):
    owner: Double
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self.owner._connections.add(self.connection)

    def finish(self) -> None:
        self.owner._connections.discard(self.connection)
        with contextlib.suppress(OSError):  # the other side is gone
            super().finish()

    def do_GET(self) -> None:
        self._do(None)

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        content = self.rfile.read(length)
        if len(content) == length:  # else who sent it has gone
            self._do(json.loads(content))
        else:
            self.close_connection = True

    def _do(self, body: dict[str, Any] | None) -> None:
        owner = self.owner
        with owner._counting:
            owner.asked.append((self.path, body or {}))
            owner.headers.append({name.lower(): value for name, value in self.headers.items()})
            owner.under_way += 1
            owner.most_under_way = max(owner.most_under_way, owner.under_way)
            fault = next((fault for fault in owner.faults if fault.path == self.path), None)
            if fault is not None:
                owner.faults.remove(fault)
        try:
            self._reply(body, fault or Fault())
        except OSError:
            owner.given_up += 1
        finally:
            with owner._counting:
                owner.under_way -= 1

    def _reply(self, body: dict[str, Any] | None, fault: Fault) -> None:
        if fault.hold:
            self._wait(fault.hold)
        if fault.hang_up:
            _hang_up(self.connection)
            self.close_connection = True
            return
        if fault.trickle:
            self._trickle()
        elif fault.status is not None:
            self._send(fault.status, fault.body, fault.headers)
        elif self._is_forbidden():
            self._send(401, {"error": "Unauthorized"}, {})
        else:
            self._send(*self.owner.answer(self.path, body), {})

    def _is_forbidden(self) -> bool:
        key = self.owner.key
        return bool(key) and self.path.startswith("/v1") and self.headers["authorization"] != f"Bearer {key}"

    def _wait(self, event: threading.Event) -> None:
        """Wait, but not for one that has hung up, as vLLM does not."""
        until = time.monotonic() + 20
        self.connection.setblocking(False)
        try:
            while not event.wait(0.002) and time.monotonic() < until:
                with contextlib.suppress(BlockingIOError):
                    if self.connection.recv(1, socket.MSG_PEEK) == b"":
                        raise ConnectionResetError
        finally:
            self.connection.setblocking(True)

    def _trickle(self) -> None:
        self._begin(200, 10_000, {})
        for _ in range(10_000):
            self.wfile.write(b" ")
            self.wfile.flush()
            time.sleep(0.01)

    def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        content = b"" if body is None else (body if isinstance(body, str) else json.dumps(body)).encode()
        self._begin(status, len(content), headers)
        self.wfile.write(content)

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has been closed meanwhile
        connection.shutdown(socket.SHUT_RDWR)

"""A loopback server with the part of Qdrant's REST API that stores use, over the real engine.

It can be told to refuse, to be slow or to limit what it takes, and remembers what it was asked.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from . import rpc
from .bodies import problem
from .engine import Engine, Refused
from .strict import refusal

_NAME = r"/collections/([^/]+)"
# Method, path, what answers it, and the type of its body.
ROUTES: list[tuple[str, str, Callable[..., Any], str | None]] = [
    ("GET", _NAME + "/exists", Engine.exists, None),
    ("GET", _NAME, Engine.info, None),
    ("PUT", _NAME, Engine.create, "CreateCollection"),
    ("PATCH", _NAME, Engine.update, "UpdateCollection"),
    ("DELETE", _NAME, Engine.delete_collection, None),
    ("PUT", _NAME + "/index", Engine.create_index, "CreateFieldIndex"),
    ("PUT", _NAME + "/points", Engine.upsert, "PointsList"),
    ("POST", _NAME + "/points", Engine.retrieve, "PointRequest"),
    ("POST", _NAME + "/points/delete", Engine.delete, "PointIdsList"),
    ("POST", _NAME + "/points/batch", Engine.batch_update, "UpdateOperations"),
    ("POST", _NAME + "/points/scroll", Engine.scroll, "ScrollRequest"),
    ("POST", _NAME + "/points/count", Engine.count, "CountRequest"),
    ("POST", _NAME + "/points/query/batch", Engine.query_batch, "QueryRequestBatch"),
]


@dataclass(frozen=True)
class Asked:
    """A request that the server got.

    Attributes:
        call: Method and path.
        size: Bytes of its body.
        body: What it said.
    """

    call: str
    size: int
    body: Any


@dataclass
class Fault:
    """An answer that the server is to give instead of doing what it is asked.

    Attributes:
        status: The HTTP status.
        calls: Which requests, as a pattern of method and path.
        after: How many of these are answered as usual first.
        times: How many are refused.
        headers: More headers of the answer.
    """

    status: int
    calls: str = ".*"
    after: int = 0
    times: int = 10**9
    headers: tuple[tuple[str, str], ...] = ()


class QdrantServer:
    """A server in threads of this process.

    Args:
        port: Where it listens on the loopback interface. 0: anywhere.
        api_key: What requests must bring. None: nothing.
        most_bytes: Largest body that it takes.
        strict: Whether bodies are checked against the API's schemas.

    Attributes:
        strict_mode: The ``strict_mode_config`` of every collection; empty: none.
        behind_proxy: Whether a proxy stands before it that takes no more bytes than it, and says so in its own way.
    """

    def __init__(
        self, port: int = 0, api_key: str | None = None, most_bytes: int = 32 * 2**20, strict: bool = True
    ) -> None:
        self.engine = Engine()
        self.api_key, self.most_bytes, self.strict = api_key, most_bytes, strict
        self.strict_mode: dict[str, Any] = {}
        self.behind_proxy = False
        self.delay = 0.0
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        server = self

        class Handler(_Handler):
            owner = server

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self._grpc: tuple[Any, int] | None = None

    @property
    def grpc_port(self) -> int:
        """Where it listens for gRPC too, from now on."""
        if self._grpc is None:
            self._grpc = rpc.serve(self.answer, self.most_bytes)
        return self._grpc[1]

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def close(self) -> None:
        """Stop listening, and free the engine."""
        self.stop_listening()
        self.engine.close()

    def stop_listening(self) -> None:
        """Refuse connections from now on."""
        if self._grpc is not None:
            self._grpc[0].stop(None).wait()
            self._grpc = None
        self._http.shutdown()
        self._http.server_close()

    def sizes(self, calls: str) -> list[int]:
        """Sizes of the bodies of some requests, in order."""
        return [asked.size for asked in self.asked if re.search(calls, asked.call)]

    def too_large(self, size: int) -> Refused:
        """What a request of so many bytes gets, which are too many."""
        if self.behind_proxy:
            return Refused(413, "413 Request Entity Too Large")
        limit = f"larger than allowed (limit: {self.most_bytes} bytes)"
        return Refused(400, f"Payload error: JSON payload ({size} bytes) is {limit}.")

    def answer(self, call: str, headers: Any, content: bytes) -> Any:
        """What a request gets; ``Refused`` is an error."""
        body = json.loads(content) if content else None
        self.asked.append(Asked(call, len(content), body if len(content) < 2**16 else None))
        time.sleep(self.delay)
        for fault in self.faults:
            if re.search(fault.calls, call):
                fault.after -= 1
                if fault.after < 0 and fault.times > 0:
                    fault.times -= 1
                    raise Refused(fault.status, f"told to answer {fault.status}")
        if self.api_key is not None and headers.get("api-key") != self.api_key:
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        method, _, path = call.partition(" ")
        for wanted, pattern, function, kind in ROUTES:
            if method == wanted and (match := re.fullmatch(pattern, path)):
                return self._called(function, unquote(match[1]), body, kind)
        raise Refused(404, f"no {call} here")

    def _called(self, function: Callable[..., Any], name: str, body: Any, kind: str | None) -> Any:
        if kind is None:
            return function(self.engine, name)
        if self.strict and (wrong := problem(body, kind)) is not None:
            raise Refused(422, f"Validation error in JSON body: {wrong}")
        if kind not in ("CreateCollection", "UpdateCollection", "CreateFieldIndex"):
            said = refusal(self.strict_mode, kind, body, self.engine.indexes(name))
            if said is not None:
                raise Refused(400, said)
        try:
            return function(self.engine, name, body)
        except Refused:
            raise
        except Exception as error:  # the engine's are of no class of their own
            raise Refused(400, f"Wrong input: {error}") from error


class _Handler(BaseHTTPRequestHandler):
    owner: QdrantServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        call = f"{self.command} {urlsplit(self.path).path}"
        headers: tuple[tuple[str, str], ...] = ()
        try:
            if length > self.owner.most_bytes:
                raise self.owner.too_large(length)
            status, reply = 200, {"result": self.owner.answer(call, self.headers, content), "status": "ok", "time": 0.0}
        except Refused as error:
            status, reply = error.status, {"status": {"error": error.said}, "time": 0.0}
            headers = next((fault.headers for fault in self.owner.faults if fault.status == status), ())
        self._send(status, json.dumps(reply).encode(), headers)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = do_request

    def _send(self, status: int, content: bytes, headers: tuple[tuple[str, str], ...]) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", "application/json"), ("Content-Length", str(len(content))), *headers):
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a client that has waited long enough
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass

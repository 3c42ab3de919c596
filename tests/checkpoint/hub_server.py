"""A hub on loopback: as much of the Hugging Face hub's protocol as fetching a snapshot takes."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Reply = tuple[int, dict[str, str], bytes]
Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository: for each revision its files, and who may see it."""

    revisions: dict[str, Files] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False

    def find(self, revision: str) -> tuple[str, Files] | None:
        """Commit and files of a branch, a tag or a commit."""
        commits = {_commit(name, files): files for name, files in self.revisions.items()}
        if revision in self.revisions:
            return _commit(revision, self.revisions[revision]), self.revisions[revision]
        return (revision, commits[revision]) if revision in commits else None


class Hub:
    """Serves folders as repositories on a port of its own, while it is entered.

    ``broken`` makes it answer as a hub does that is down; ``sent`` holds what was asked for, with its token.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.sent: list[tuple[str, str | None]] = []
        self.broken = False

    def add(
        self, name: str, folder: Path, *, revision: str = "main", token: str | None = None, gated: bool = False
    ) -> str:
        """Publish a folder as a revision of a repository; returns the commit."""
        repository = self.repositories.setdefault(name, Repository(token=token, gated=gated))
        files = {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }
        repository.revisions[revision] = files
        return _commit(revision, files)

    def fetched(self, name: str) -> list[str]:
        """Files of a repository that were downloaded, sorted."""
        asked = [path.removeprefix(f"GET /{name}/resolve/") for path, _ in self.sent if f"GET /{name}/resolve" in path]
        return sorted(path.split("/", 1)[1] for path in asked)

    def tokens(self, name: str) -> set[str | None]:
        """What requests for a repository carried as ``Authorization``."""
        return {token for path, token in self.sent if f"/{name}/" in path}

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._listen(0)
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()

    def hang_up(self) -> None:
        """Stop listening, so that connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def resume(self) -> None:
        """Listen again, at the same place."""
        self._listen(self._server.server_port)

    def _listen(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    # --------------------------------------------------------------------------------------------------- replies

    def reply(self, path: str, token: str | None) -> Reply:
        """What the hub says to a request."""
        if self.broken:
            return 503, {}, b"down for maintenance"
        if token == "Bearer hf_expired":
            return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
        api, parts = path.startswith("/api/models/"), path.removeprefix("/api/models").strip("/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.repositories.get(name)
        private = repository is not None and repository.token is not None and not repository.gated
        if repository is None or (private and token != f"Bearer {repository.token}"):
            return _refusal(404 if token else 401, "RepoNotFound", "Repository not found")
        revision = rest[1] if len(rest) > 1 else "main"
        found = repository.find(revision)
        if found is None:
            return _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if api:
            return _tree(*found) if rest[:1] == ["tree"] else _info(name, *found)
        if repository.gated and token != f"Bearer {repository.token}":
            return _refusal(403 if token else 401, "GatedRepo", f"Access to model {name} is restricted")
        return _file(*found, "/".join(rest[2:]))


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path, token = unquote(urlsplit(self.path).path), self.headers.get("Authorization")
        self.hub.sent.append((f"{self.command} {path}", token))
        status, headers, body = self.hub.reply(path, token)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


def _commit(revision: str, files: Files) -> str:
    return hashlib.sha1(revision.encode() + b"".join(files.values())).hexdigest()


def _blob(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _json(value: Any) -> Reply:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _info(name: str, commit: str, files: Files) -> Reply:
    return _json({"id": name, "modelId": name, "sha": commit, "siblings": [{"rfilename": path} for path in files]})


def _tree(commit: str, files: Files) -> Reply:
    return _json(
        [{"type": "file", "path": path, "size": len(content), "oid": _blob(content)} for path, content in files.items()]
    )


def _file(commit: str, files: Files, path: str) -> Reply:
    headers = {"X-Repo-Commit": commit}
    if path not in files:
        return _refusal(404, "EntryNotFound", f"no file {path}", **headers)
    return 200, {**headers, "ETag": f'"{_blob(files[path])}"'}, files[path]


def _refusal(status: int, code: str, message: str, **headers: str) -> Reply:
    return status, {**headers, "X-Error-Code": code, "X-Error-Message": message}, b""

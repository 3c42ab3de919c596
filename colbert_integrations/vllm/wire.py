"""What is sent to a vLLM server, and what its answers and errors mean."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import torch

from ..errors import RemoteError, RemoteMismatchError, RemoteRefusedError
from .settings import API_KEY_VARIABLE

__all__ = ["TOO_MANY_REQUESTS", "Failure", "pooling_request", "read_answer", "read_rows", "read_scores"]

_DTYPES = {"float16": "<f2", "float32": "<f4"}
TOO_MANY_REQUESTS = 429
_UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _FAILED = 401, 403, 404, 500
# How much of an answer that is not understood is shown.
_SHOWN = 200


class Failure(Exception):
    """A request came to nothing, and may do better elsewhere or later.

    Args:
        message: What went wrong.
        status: The HTTP status. None: there was no answer.
        wait_s: How long the server asks to be left alone.
        foreign: Whether the answer was no vLLM server's, as from a proxy whose server is being restarted.
    """

    def __init__(self, message: str, status: int | None = None, wait_s: float = 0.0, *, foreign: bool = False) -> None:
        self.status = status
        self.wait_s = wait_s
        self.foreign = foreign
        super().__init__(message)


# ------------------------------------------------------------------------------------------------------------ requests


def pooling_request(ids: Sequence[Sequence[int]], dtype: str, *, normalized: bool) -> dict[str, Any]:
    """The body of a ``POST /pooling`` that asks for the vector of every token.

    Args:
        ids: Token ids of each sequence, which the server takes as they are.
        dtype: ``"float16"`` or ``"float32"``, of the vectors on their way.
        normalized: Whether the server brings the vectors to unit length, which half precision then can't overflow.

    Returns:
        The body.
    """
    return {
        "task": "token_embed",
        "input": ids,
        "encoding_format": "base64",
        "embed_dtype": dtype,
        "endianness": "little",
        "use_activation": normalized,
    }


# ------------------------------------------------------------------------------------------------------------- answers


def read_answer(url: str, path: str, response: httpx.Response) -> Any:
    """The data of an answer, or the error that it is.

    Args:
        url: The server.
        path: What was asked of it.
        response: Its answer.

    Returns:
        The parsed JSON.

    Raises:
        Failure: If the server failed or has too much to do, or the answer is not JSON.
        RemoteRefusedError: If it refused the request.
    """
    status = response.status_code
    if status >= _FAILED or status == TOO_MANY_REQUESTS:
        raise Failure(f"{status} {_reason(response)}", status, _retry_after(response))
    if not response.is_success:
        raise RemoteRefusedError(f"{url}{path}: {status} {_reason(response)}{_advice(status, path)}", url, status)
    try:
        return response.json()
    except (ValueError, RecursionError):
        shown = response.text[:_SHOWN]
        raise Failure(
            f"{url}{path} did not answer with JSON: is it a vLLM server? {shown!r}", status, foreign=True
        ) from None


def _reason(response: httpx.Response) -> str:
    """What an error says: vLLM's object, the string of its key check, the detail of its web framework, or the text."""
    try:
        body = response.json()
    except (ValueError, RecursionError):
        return response.text[:_SHOWN] or response.reason_phrase
    if not isinstance(body, dict):
        return str(body)[:_SHOWN]
    error = body.get("error", body.get("detail"))
    if isinstance(error, dict):
        return f"{error.get('type', 'Error')}: {error.get('message', error)}"[:_SHOWN]
    return str(error if error is not None else body)[:_SHOWN]


def _advice(status: int, path: str) -> str:
    if status in (_UNAUTHORIZED, _FORBIDDEN):
        return f". Pass api_key=, or set {API_KEY_VARIABLE}; pickles do not carry a key"
    if status == _NOT_FOUND and path == "/pooling":
        return ". A vLLM server has /pooling if its model is a pooling model"
    return ""


def _retry_after(response: httpx.Response) -> float:
    """Seconds to wait; a date, which the header may hold as well, counts as none."""
    try:
        return max(0.0, float(response.headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def read_rows(url: str, answer: Any, counts: Sequence[int], dim: int | None, dtype: str) -> torch.Tensor:
    """The vectors of an answer to ``pooling_request``.

    Args:
        url: The server.
        answer: Its answer.
        counts: How many tokens each sequence had.
        dim: Dimension of a vector. None: any.
        dtype: As in the request.

    Returns:
        The vectors of all sequences, one after another, ``(tokens, dim)`` float32.

    Raises:
        RemoteMismatchError: If there is not one vector of that dimension for each token.
    """
    parts = [_bytes(url, item) for item in _in_order(url, answer, len(counts))]
    itemsize = np.dtype(_DTYPES[dtype]).itemsize
    dims = {len(part) / itemsize / count for part, count in zip(parts, counts, strict=True)}
    found = dims.pop()
    if dims or not found or not found.is_integer():
        raise RemoteMismatchError(f"{url} does not give one vector for each token: is its task 'token_embed'?", url)
    if dim is not None and found != dim:
        raise RemoteMismatchError(
            f"{url} gives vectors of dimension {found:g}, where this checkpoint's have {dim}: it serves another model, "
            "or this one without its projection",
            url,
        )
    values = np.frombuffer(b"".join(parts), dtype=_DTYPES[dtype]).astype(np.float32)
    return torch.from_numpy(values).view(-1, int(found))


def _bytes(url: str, item: dict[str, Any]) -> bytes:
    try:
        return base64.b64decode(item["data"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _not_understood(url, item) from error


def read_scores(url: str, answer: Any, count: int) -> list[float]:
    """The scores of an answer of ``/score``, in the order of the documents.

    Args:
        url: The server.
        answer: Its answer.
        count: How many documents there are.

    Returns:
        A score for each.

    Raises:
        RemoteMismatchError: If it has others.
    """
    try:
        return [float(item["score"]) for item in _in_order(url, answer, count)]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _not_understood(url, answer) from error


def _in_order(url: str, answer: Any, count: int) -> list[dict[str, Any]]:
    """The items of an answer by their index, of which each must be there once, and no other."""
    try:
        items = sorted(answer["data"], key=lambda item: item["index"])
        found = [item["index"] for item in items]
    except (KeyError, TypeError) as error:
        raise _not_understood(url, answer) from error
    if found != list(range(count)):
        raise _not_understood(url, answer)
    return items


def _not_understood(url: str, answer: Any) -> RemoteError:
    return RemoteMismatchError(f"{url} gave an answer that is not vLLM's: {json.dumps(answer)[:_SHOWN]}", url)

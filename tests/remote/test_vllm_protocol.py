"""The double answers as a real vLLM does: the same requests to both, with what they answer."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import numpy as np
import pytest

import checkpoints

ASK = {"task": "token_embed", "encoding_format": "base64", "embed_dtype": "float32", "endianness": "little"}
TOO_LONG = (
    "This model's maximum context length is 512 tokens. However, your prompt contains at least 513 input tokens, which "
    "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
    "(parameter=input_tokens, value=513)"
)
PAIR = "At least one text_pair element must be given"
# path, body, status, type and message of the error
ERRORS: dict[str, tuple[str, dict[str, Any], int, str, str]] = {
    "no inputs": ("/pooling", {"input": []}, 400, "BadRequestError", "You must pass at least one prompt"),
    "no tokens": ("/pooling", {"input": [[12], []]}, 400, "BadRequestError", "The decoder prompt cannot be empty"),
    "too long": ("/pooling", {"input": [[12] * 513]}, 400, "BadRequestError", TOO_LONG),
    "unknown token": ("/pooling", {"input": [[9999]]}, 400, "BadRequestError", "Token id 9999 is out of vocabulary"),
    "other task": ("/pooling", {"input": [[12]], "task": "embed"}, 400, "BadRequestError", "Unsupported task: 'embed'"),
    "other dtype": ("/pooling", {"input": [[12]], "embed_dtype": "int3"}, 400, "", "validation error"),
    "no input": ("/pooling", {}, 400, "", "validation error"),
    "other model": (
        "/pooling",
        {"input": [[12]], "model": "nope"},
        404,
        "NotFoundError",
        "The model `nope` does not exist.",
    ),
    "nothing to score": ("/score", {"queries": "a", "documents": []}, 400, "BadRequestError", PAIR),
    "a document too long": (
        "/score",
        {"queries": "a", "documents": ["fox " * 600]},
        400,
        "BadRequestError",
        TOO_LONG,
    ),
}


def post(url: str, path: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(url + path, json={**(ASK if path == "/pooling" else {}), **body}, timeout=120)


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str, served) -> None:
    path, body, status, kind, message = ERRORS[name]
    reply = post(served["bert"].url, path, body)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert error["code"] == status
    assert message in error["message"]
    assert not kind or error["type"] == kind


def test_a_key_guards_the_list_of_models_and_not_the_vectors(served) -> None:
    server = served["bert"]
    reply = httpx.get(f"{server.url}/v1/models")
    assert (reply.status_code, reply.json()) == (401, {"error": "Unauthorized"})
    assert post(server.url, "/pooling", {"input": [[12]]}).status_code == 200


def test_other_paths_are_not_found(served) -> None:
    reply = post(served["bert"].url, "/embeddings", {"input": [[12]]})
    assert (reply.status_code, reply.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_models_and_health(family: str, served) -> None:
    server = served[family]
    reply = httpx.get(f"{server.url}/v1/models", headers={"Authorization": f"Bearer {server.key}"}).json()
    assert [(entry["id"], entry["max_model_len"]) for entry in reply["data"]] == [("tiny", 512)]
    assert httpx.get(f"{server.url}/health").status_code == 200


@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(
    ("activation", "unit"), [({}, True), ({"use_activation": True}, True), ({"use_activation": False}, False)]
)
def test_vectors_are_little_endian_rows_of_every_token(family: str, activation: dict, unit: bool, served) -> None:
    reply = post(served[family].url, "/pooling", {"input": [[12, 3, 13], [12]], **activation}).json()
    items = {item["index"]: base64.b64decode(item["data"]) for item in reply["data"]}
    assert {index: len(item) for index, item in items.items()} == {0: 3 * checkpoints.DIM * 4, 1: checkpoints.DIM * 4}
    norms = np.linalg.norm(np.frombuffer(items[0], "<f4").reshape(3, -1), axis=1)
    assert np.allclose(norms, 1, atol=1e-5) == unit


def test_scores_have_the_index_of_their_document(served) -> None:
    def scores(*documents: str) -> dict[int, float]:
        reply = post(served["bert"].url, "/score", {"queries": "a fox", "documents": documents}).json()
        return {item["index"]: item["score"] for item in reply["data"]}

    found = scores("bread", "the fox runs")
    assert found == pytest.approx({0: scores("bread")[0], 1: scores("the fox runs")[0]}, abs=1e-4)
    assert found[0] != pytest.approx(found[1], abs=1e-3)

"""What a vLLM server takes: the fields of the requests that this package sends, and a check of bodies against them.

In our own words after the schema that a server prints at ``/openapi.json`` (vLLM 0.32.0, Apache-2.0,
https://github.com/vllm-project/vllm): its fields that are sent here, and no others, which a server silently ignores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def one_of(*values: str) -> Check:
    return lambda value: value in values


def is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_ids(value: Any) -> bool:
    """Token ids of each input; a server takes texts too, which this package never sends there."""
    return isinstance(value, list) and all(isinstance(ids, list) and all(map(is_number, ids)) for ids in value)


def is_flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


# Path -> fields that must be there, and those that may.
REQUESTS: dict[str, tuple[dict[str, Check], dict[str, Check]]] = {
    "/pooling": (
        {"input": is_ids},
        {
            "model": is_text,
            "task": one_of("embed", "classify", "token_embed", "token_classify", "plugin", "embed&token_classify"),
            "encoding_format": one_of("float", "base64", "bytes", "bytes_only"),
            "embed_dtype": one_of("float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"),
            "endianness": one_of("native", "big", "little"),
            "use_activation": is_flag,
        },
    ),
    "/score": (
        {"queries": is_text, "documents": is_texts},
        {"model": is_text, "max_tokens_per_query": is_number, "max_tokens_per_doc": is_number},
    ),
}


def violations(path: str, body: dict[str, Any]) -> list[str]:
    """Fields of a request that are missing, unknown, or not what the server takes."""
    needed, allowed = REQUESTS[path]
    known = needed | allowed
    wrong = [f"{name} is missing" for name in needed if name not in body]
    wrong += [f"{name} is unknown" for name in body if name not in known]
    wrong += [f"{name} can't be {body[name]!r}" for name in body if name in known and not known[name](body[name])]
    return wrong

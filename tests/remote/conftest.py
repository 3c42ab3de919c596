"""Servers to encode on: the double, and where COLBERT_TEST_VLLM is set a real vLLM, which get the same requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from colbert_integrations import ColBERT
from colbert_integrations.vllm import VLLMForward, servers
from layouts import ARCHITECTURES, KEY, LAYOUTS, SERVED
from vllm_double import Double
from vllm_real import RealVLLM

Server = Double | RealVLLM


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a checkpoint of ``LAYOUTS`` once and gives its folder."""
    root = tmp_path_factory.mktemp("served")

    def get(layout: str) -> Path:
        path = root / layout
        if not path.exists():
            path.mkdir()
            LAYOUTS[layout][1](path, attention_heads=1)
        return path

    return get


@pytest.fixture(scope="session")
def doubles(folder: Callable[[str], Path]) -> Iterator[dict[str, Double]]:
    found = {family: Double(folder(layout)) for family, layout in SERVED.items()}
    yield found
    for double in found.values():
        double.kill()


@pytest.fixture
def double(doubles: dict[str, Double]) -> Iterator[Double]:
    """The double that serves BERT, as new."""
    doubles["bert"].forget()
    yield doubles["bert"]
    doubles["bert"].forget()


@pytest.fixture(scope="session", params=["double", pytest.param("vllm", marks=pytest.mark.vllm)])
def families(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Server]]:
    """The servers of one kind, by what they serve."""
    if request.param == "double":
        yield dict(request.getfixturevalue("doubles"))
        return
    folder, python = request.getfixturevalue("folder"), os.environ["COLBERT_TEST_VLLM"]
    logs = tmp_path_factory.mktemp("vllm")
    real = {
        family: RealVLLM(python, folder(layout), logs / f"{family}.log", architecture=ARCHITECTURES[family], key=KEY)
        for family, layout in SERVED.items()
    }
    try:
        for server in real.values():
            server.start()
        yield dict(real)
    finally:
        for server in real.values():
            server.kill()


@pytest.fixture
def served(families: dict[str, Server]) -> dict[str, Server]:
    """The same, as new for each test; a double has the key that a real server was started with."""
    for server in families.values():
        server.forget()
        server.key = KEY
    return families


@pytest.fixture
def remote(served: dict[str, Server], folder: Callable[[str], Path]) -> Iterator[Callable[..., ColBERT]]:
    """Makes models of a layout whose forward pass is on the server that has its weights."""
    made = []

    def make(layout: str, *, family: str = "", forward: Mapping[str, Any] = MappingProxyType({}), **options: Any):
        server = served[family or LAYOUTS[layout][0]]
        asked = VLLMForward(server.url, **{"api_key": server.key, "embed_dtype": "float32", **forward})
        made.append(asked)
        return ColBERT(folder(layout), device="cpu", forward=asked, **options)

    yield make
    for asked in made:
        asked.close()


@pytest.fixture(scope="session")
def local(folder: Callable[[str], Path]) -> Callable[..., ColBERT]:
    """Makes models of a layout that run here."""
    made: dict[Any, ColBERT] = {}

    def make(layout: str, **options: Any) -> ColBERT:
        key = (layout, repr(options))
        if key not in made:
            made[key] = ColBERT(folder(layout), device="cpu", **options)
        return made[key]

    return make


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that fail are asked again soon."""
    monkeypatch.setattr(servers, "_FIRST_PAUSE_S", 0.02)

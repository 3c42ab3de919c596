"""The rooms of the package: what each may import, that nothing goes in circles, and what an import costs."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import colbert_integrations

PACKAGE = Path(colbert_integrations.__file__).parent
CORE = {
    ".cache",
    ".cancellation",
    ".checkpoint",
    ".checks",
    ".cuts",
    ".devices",
    ".embeddings",
    ".encoder",
    ".errors",
    ".explain",
    ".fingerprint",
    ".observing",
    ".pooling",
    ".ranking",
    ".scoring",
    ".settings",
    ".single_flight",
    ".worker",
}

# Room -> what it may import beside itself and the standard library; ours with a dot, a dotted name with all below it.
ROOMS = {
    "__init__": set[str](),
    "errors": set[str](),
    "checks": {".errors"},
    "ranking": {".checks", ".errors"},
    "names": set[str](),
    "settings": {".checks", ".errors", ".names"},
    "fingerprint": set[str](),
    "observing": set[str](),
    "cancellation": set[str](),
    "worker": {".cancellation"},
    "cache": {"torch"},
    "cuts": {".errors"},
    "dates": set[str](),
    "devices": {".errors", "numpy", "torch"},
    "embeddings": {".checks", ".devices", ".errors", "numpy", "torch"},
    "progress": {"tqdm"},
    "single_flight": set[str](),
    "checkpoint": {".checks", ".errors", "huggingface_hub", "numpy", "safetensors", "torch"},
    "encoder": {
        ".cancellation",
        ".checkpoint",
        ".cuts",
        ".devices",
        ".embeddings",
        ".errors",
        ".kernel",
        ".observing",
        ".progress",
        ".worker",
    }
    | {"numpy", "tokenizers", "torch", "transformers", "triton"},
    "kernel": {"colbert_integrations_kernel", "torch"},
    "scoring": {".devices", ".embeddings", ".errors", ".kernel", "numpy", "torch", "triton"},
    "pooling": {".checks", ".devices", ".embeddings", ".errors", "numpy", "scipy", "torch"},
    "explain": {".checks", ".devices", ".encoder", ".errors", "matplotlib", "numpy", "regex", "rich", "torch"},
    "model": {*CORE, "torch"},
    # It sees embeddings, never texts to encode.
    "index": {".cancellation", ".checks", ".dates", ".devices", ".embeddings", ".errors", ".fingerprint", ".progress"}
    | {".scoring", ".worker", "filelock", "numpy", "safetensors", "torch"},
    "qdrant": {".cancellation", ".checks", ".embeddings", ".errors", ".fingerprint", ".index"}
    | {"grpc", "httpx", "numpy", "pydantic", "qdrant_client", "torch"},
    "location": {".errors", ".qdrant"},
    "stale": {".cuts", ".errors", ".index", ".model"},
    "loading": {".cuts", ".embeddings", ".errors", ".index", ".model", ".stale", ".worker"},
    "colbert_index": {".checks", ".cuts", ".embeddings", ".errors", ".index", ".loading", ".location", ".model"}
    | {".observing", ".progress", ".ranking", ".settings", ".stale", ".worker"},
    "corpus": {".checks", ".colbert_index", ".errors", ".index", ".loading", ".model", ".progress"},
    "adapter": {".colbert_index", ".errors", ".model", ".names", ".ranking", ".settings"}
    | {"pydantic", "typing_extensions"},
    "langchain": {".adapter", ".checks", ".colbert_index", ".errors", ".index", ".names", ".observing", ".ranking"}
    | {"langchain_core", "pydantic", "typing_extensions"},
    "llama_index": {".adapter", ".checks", ".colbert_index", ".dates", ".errors", ".index", ".observing", ".ranking"}
    | {"llama_index.core", "pydantic", "typing_extensions"},
    "vllm": {".checkpoint", ".checks", ".encoder", ".errors", ".ranking", "httpx", "numpy", "torch"},
    # Nothing imports it.
    "cli": {".__version__", ".colbert_index", ".corpus", ".errors", ".explain", ".index", ".location", ".model"}
    | {".ranking", ".scoring", ".settings", "filelock", "huggingface_hub", "matplotlib", "rich"},
    "__main__": {".cli"},
}
# What type checkers may see beyond that; never imported when the package runs.
TYPING = {
    "__init__": {*CORE, ".colbert_index", ".corpus", ".index", ".location", ".model"},
    "adapter": {".explain"},
    "index": {".explain"},
    "location": {".index"},
    "ranking": {".checkpoint", ".explain"},
    "langchain": {".model"},
    "llama_index": {".model"},
}
# Formats are data: reading them takes tensors, but no layers.
FORBIDDEN = {"checkpoint": {"torch.nn"}}


@dataclass(frozen=True)
class Import:
    """A name that a module imports, absolute or of ours with a dot in front; whether for type checkers only."""

    name: str
    typing: bool


def imports(tree: ast.AST, package: list[str], typing: bool = False) -> Iterator[Import]:
    """Every import below a node of a module that lies in a package, given from the root package downwards."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            start = ".".join([*base[1:], *(node.module or "").split(".")]).strip(".")
            yield from (
                Import(("." if node.level else "") + f"{start}.{alias.name}".strip("."), typing) for alias in node.names
            )
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            # "import torch" makes torch.nn reachable.
            yield from [Import("torch.nn", typing)] if (node.value.id, node.attr) == ("torch", "nn") else []
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from imports(node, package, typing=True)
        else:
            yield from imports(node, package, typing)


def within(name: str, allowed: set[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in allowed)


def violations(room: str, found: list[Import]) -> list[str]:
    """Imports that the table does not allow a room."""
    own = {f".{room}"} | set(sys.stdlib_module_names)
    wrong = []
    for item in found:
        allowed = own | ROOMS[room] | (TYPING.get(room, set()) if item.typing else set())
        if not within(item.name, allowed) or within(item.name, FORBIDDEN.get(room, set())):
            wrong.append(item.name)
    return wrong


def read(path: Path) -> list[Import]:
    return list(imports(ast.parse(path.read_text()), ["colbert_integrations", *path.relative_to(PACKAGE).parts[:-1]]))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    """``.checkpoint.hub``; a package's own module bears the package's name."""
    return "." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    assert violations(room_of(path), read(path)) == []


@pytest.mark.parametrize(
    ("room", "source", "wrong"),
    [
        ("errors", "import torch", ["torch"]),
        ("embeddings", "from .scoring import maxsim", [".scoring.maxsim"]),
        ("checkpoint", "from torch import nn", ["torch.nn"]),
        ("checkpoint", "import torch.nn.functional as F", ["torch.nn.functional"]),
        ("checkpoint", "import torch\nlayer = torch.nn.Linear(1, 1)", ["torch.nn"]),
        ("checkpoint", "def late():\n    from transformers import AutoConfig", ["transformers.AutoConfig"]),
        ("scoring", "from ..checkpoint import locate", [".checkpoint.locate"]),
        ("model", "from .langchain import ColBERTReranker", [".langchain.ColBERTReranker"]),
        ("langchain", "from langchain_classic.retrievers import X", ["langchain_classic.retrievers.X"]),
        ("langchain", "from .model import ColBERT", [".model.ColBERT"]),
        ("langchain", "if TYPE_CHECKING:\n    from .llama_index import X", [".llama_index.X"]),
        ("llama_index", "from llama_index.retrievers.bm25 import X", ["llama_index.retrievers.bm25.X"]),
        ("__init__", "from .model import ColBERT", [".model.ColBERT"]),
    ],
)
def test_the_check_sees_what_is_forbidden(room: str, source: str, wrong: list[str]) -> None:
    package = ["colbert_integrations", room][: 2 if source.startswith("from ..") else 1]
    assert violations(room, list(imports(ast.parse(source), package))) == wrong


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("room", sorted(PACKAGE.glob("*/**/__init__.py")), ids=module_of)
def test_a_room_names_its_files_in_its_docstring(room: Path) -> None:
    said = ast.get_docstring(ast.parse(room.read_text())) or ""
    files = {path.name for path in room.parent.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"``(\w+\.py)``", said)) == files


def test_the_package_names_its_rooms_in_its_docstring() -> None:
    said = ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text())) or ""
    rooms = {f"{path.parent.name}/" for path in PACKAGE.glob("*/__init__.py")}
    files = {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert sorted(re.findall(r"``(\w+(?:/|\.py))``", said)) == sorted(rooms | files)


def graph() -> dict[str, set[str]]:
    """For each module those of ours that it imports when it runs, at its top or in a function."""
    names = {module_of(path) for path in MODULES}
    targets = {module_of(path): [item.name for item in read(path) if not item.typing] for path in MODULES}
    # "from .x import y" is the module ".x.y" if there is one, else the name y of ".x".
    return {
        module: {name if name in names else name.rpartition(".")[0] for name in imported if name.startswith(".")}
        for module, imported in targets.items()
    }


def test_no_module_imports_itself_in_a_circle() -> None:
    order = list(TopologicalSorter(graph()).static_order())
    assert order.index(".errors") < order.index(".model") < order.index(".langchain")


def test_the_check_sees_a_circle() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter(graph() | {".errors": {".model"}}).prepare()


# ------------------------------------------------------------------------------------------------ what is loaded when

HEAVY = ["torch", "transformers", "numpy", "pydantic", "langchain_core", "llama_index", "qdrant_client"]


def loaded_after(statement: str, *more: str) -> list[str]:
    """What is loaded in a fresh interpreter after a statement, of the heavy packages and of ``more``."""
    code = f"{statement}\nimport sys\nprint(*[name for name in {[*HEAVY, *more]} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return done.stdout.split()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_after("import colbert_integrations; colbert_integrations.__version__") == []


def test_importing_the_core_loads_no_framework_and_touches_no_gpu() -> None:
    core = "from colbert_integrations import *\nimport torch\nassert not torch.cuda.is_initialized()"
    assert set(loaded_after(core)).isdisjoint({"langchain_core", "llama_index", "pydantic", "qdrant_client"})


def test_a_stored_explanation_is_read_without_the_core() -> None:
    assert loaded_after("from colbert_integrations import Explanation", "regex") == ["regex"]


# ------------------------------------------------------------------------------------------------------- public names


@pytest.mark.parametrize("name", [module_of(path) for path in MODULES])
def test_public_names_are_sorted_and_there(name: str) -> None:
    module = importlib.import_module(f"colbert_integrations{name}".rstrip("."))
    # Constants, then classes, then functions, as ruff sorts them.
    assert module.__all__ == sorted(module.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    assert all(hasattr(module, public) for public in module.__all__)


def test_the_door_knows_where_each_public_name_lives() -> None:
    assert set(colbert_integrations._ROOMS) == set(colbert_integrations.__all__) <= set(dir(colbert_integrations))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        colbert_integrations.nothing  # noqa: B018

"""What importing an adapter costs, and what it says where its framework is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

ADAPTERS = {"langchain": "langchain_core", "llama_index": "llama_index"}
IMPORTS = {
    "langchain": "from langchain_core.documents import Document",
    "llama_index": "from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode",
}
METHODS = {"langchain": "compress_documents", "llama_index": "postprocess_nodes"}
ITEMS = {"langchain": "Document('a')", "llama_index": "NodeWithScore(node=TextNode(text='a'))"}
QUERIES = {"langchain": "'q'", "llama_index": "QueryBundle('q')"}

BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
"""

WHERE_TORCH_IS_IMPORTED = """
import asyncio, sys, threading
found = []
class Watcher:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            found.append(threading.current_thread() is threading.main_thread())
"""


def fresh(program: str) -> list[str]:
    """Lines that a program prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nothing_but_ranking_loads_torch_and_that_off_the_event_loop(adapter: str):
    other = next(framework for name, framework in ADAPTERS.items() if name != adapter)
    program = f"""
{WHERE_TORCH_IS_IMPORTED}
import colbert_integrations.{adapter} as adapter
from colbert_integrations.errors import ColBERTError
{IMPORTS[adapter]}
reranker = getattr(adapter, adapter.__all__[0])(model="/no/such/model", top_n=2)
assert reranker.{METHODS[adapter]}([], {QUERIES[adapter]}) == []
assert asyncio.run(reranker.a{METHODS[adapter]}([], {QUERIES[adapter]})) == []
print(*sorted(name for name in sys.modules if "." not in name or name.startswith("colbert_integrations.")))
sys.meta_path.insert(0, Watcher())
async def main():
    try:
        await reranker.a{METHODS[adapter]}([{ITEMS[adapter]}], {QUERIES[adapter]})
    except ColBERTError:
        print(found)
asyncio.run(main())
"""
    modules, found = fresh(program)
    loaded = set(modules.split())
    assert ADAPTERS[adapter] in loaded
    core = {"torch", "transformers", "tokenizers", "colbert_integrations.model"}
    assert not loaded & {*core, "langchain", "langchain_classic", other}
    assert found == "[False]"


@pytest.mark.parametrize(("adapter", "extra"), [("langchain", "langchain"), ("llama_index", "llama-index")])
def test_a_missing_framework_is_named_with_the_line_that_installs_it_and_the_other_works(adapter: str, extra: str):
    other = next(name for name in ADAPTERS if name != adapter)
    program = f"""
BLOCKED = {ADAPTERS[adapter]!r}
{BLOCKER}
from colbert_integrations.errors import ColBERTError, MissingExtraError
try:
    import colbert_integrations.{adapter}
except ImportError as error:
    print(type(error) is MissingExtraError, isinstance(error, ColBERTError), error.extra)
    print(error)
    print(type(error.__cause__).__name__)
import colbert_integrations.{other}
print("fine")
"""
    kinds, message, cause, fine = fresh(program)
    assert kinds == f"True True {extra}"
    assert f"colbert_integrations.{adapter}" in message
    assert f"pip install 'colbert-integrations[{extra}]'" in message
    assert cause == "ModuleNotFoundError"
    assert fine == "fine"

"""README and docs: every snippet runs and prints what stands below it, every link leads somewhere, and so on."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from openinference.instrumentation.llama_index import LlamaIndexInstrumentor

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "examples" / "README.md", ROOT / "kernel" / "README.md"]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ------------------------------------------------------------------------------------------------------------ snippets

# A block of Python, and what it prints where a block of output follows.
_BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```\n(?:\n\1```output\n(.*?)^\1```)?", re.DOTALL | re.MULTILINE)
SNIPPETS = [
    pytest.param(page, textwrap.dedent(code), textwrap.dedent(printed), id=f"{name(page)}-{number}")
    for page, text in TEXTS.items()
    for number, (_, code, printed) in enumerate(_BLOCK.findall(text), 1)
]


@pytest.fixture
def left_as_found():
    """Puts back what snippets about logging and tracing change."""
    loggers = [logging.root, logging.getLogger("colbert_integrations")]
    kept = [(logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, handlers) in zip(loggers, kept, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
    instrumentor = LlamaIndexInstrumentor()  # one object for the whole process
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()


@pytest.mark.parametrize(("page", "code", "printed"), SNIPPETS)
def test_each_snippet_runs_by_itself(page, code, printed, tmp_path, monkeypatch, capsys, left_as_found):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name(page), "exec"), {"__name__": "__main__"})
    if printed:
        assert_same(capsys.readouterr().out, printed)


def assert_same(printed: str, expected: str) -> None:
    """The same words, and numbers that differ by one in the second digit at most, if a machine rounds to the other."""
    number = re.compile(r"-?\d+\.\d+")
    assert number.split(printed) == number.split(expected)
    shown, wanted = ([float(found) for found in number.findall(text)] for text in (printed, expected))
    assert shown == pytest.approx(wanted, rel=0, abs=0.011)


def test_each_block_is_found():
    fences = [info for text in TEXTS.values() for info in re.findall(r"^ *```(\w+)$", text, re.MULTILINE)]
    assert fences.count("python") == len(SNIPPETS) > 40
    assert fences.count("output") == sum(bool(snippet.values[2]) for snippet in SNIPPETS) > 5


def commands(page: Path) -> str:
    """What a page says for a shell: blocks of no language or a shell's, and words of the text in code style."""
    tokens = MarkdownIt().enable("table").parse(TEXTS[page])
    blocks = [token for token in tokens if token.type in ("fence", "code_block")]
    shell = [block.content for block in blocks if block.info in ("", "sh", "bash")]
    words = [child.content for token in tokens for child in token.children or () if child.type == "code_inline"]
    return "\n".join(shell + words)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_what_there_is(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    optional = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    extras = re.findall(r"^([a-z-]+) = \[", optional, re.MULTILINE)
    assert set(re.findall(r"^ *make ([a-z-]+)", commands(page), re.MULTILINE)) <= set(targets)
    named = re.findall(r"(?:colbert-integrations|^)\[([a-z,-]+)\]", commands(page), re.MULTILINE)
    assert {extra for group in named for extra in group.split(",")} <= set(extras)


# --------------------------------------------------------------------------------------------------------------- links


def links(page: Path) -> list[str]:
    tokens = [child for token in MarkdownIt().enable("table").parse(TEXTS[page]) for child in token.children or ()]
    return [
        str(token.attrGet("href") or token.attrGet("src")) for token in tokens if token.type in ("link_open", "image")
    ]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    tokens = MarkdownIt().parse(TEXTS[page])
    headings = [tokens[place + 1].children or [] for place, token in enumerate(tokens) if token.type == "heading_open"]
    said = [
        "".join(child.content for child in heading if child.type in ("text", "code_inline")) for heading in headings
    ]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in said}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_each_link_leads_somewhere(page):
    for link in links(page):
        if re.match(r"https?:", link):
            assert re.fullmatch(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/[\w./#-]*)?", link), link
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target), link


# -------------------------------------------------------------------------------------------------------------- tables

TABLES = {
    "rerank_peers.py --short --cpu Xeon": "README.md",
    "cranfield.py": "benchmarks/README.md",
    "index_cranfield.py": "docs/retrieval.md",
    "index_scale.py": "docs/retrieval.md",
    "index_peers.py": "docs/retrieval.md",
    "index_peers.py --results benchmarks/results/index_plaid.csv": "docs/retrieval.md",
    "qdrant_cranfield.py": "docs/qdrant.md",
    "qdrant_first_stage.py": "docs/qdrant.md",
    "qdrant_load.py": "docs/qdrant.md",
    "corpus_load.py": "docs/scaling.md",
    "maxsim_peers.py --cpu Xeon": "docs/performance.md",
    "encoding_peers.py --cpu Xeon": "docs/performance.md",
    "rerank_peers.py --cpu Xeon": "docs/performance.md",
    'maxsim_peers.py --cpu "family 26"': "docs/performance_zen5.md",
    'encoding_peers.py --cpu "family 26"': "docs/performance_zen5.md",
    'rerank_peers.py --cpu "family 26"': "docs/performance_zen5.md",
    'maxsim_peers.py --cpu "family 25"': "docs/performance_zen3.md",
    'encoding_peers.py --cpu "family 25"': "docs/performance_zen3.md",
    'rerank_peers.py --cpu "family 25"': "docs/performance_zen3.md",
    "rerank_peers.py --concurrent --cpu Xeon": "docs/performance.md",
    'rerank_peers.py --concurrent --cpu "family 25"': "docs/performance_zen3.md",
    "gpu_maxsim.py": "docs/performance.md",
    "observing_cost.py": "docs/observability.md",
    "vllm_encoding.py": "docs/vllm.md",
}


# One interpreter for all of them: importing torch for each took 45 seconds.
_PRINT_ALL = """
import contextlib, io, json, runpy, shlex, sys
tables, scripts = {}, json.loads(sys.argv[1])
sys.path.insert(0, "benchmarks")
for script in scripts:
    sys.argv = [*shlex.split(script), "--print"]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_path(f"benchmarks/{sys.argv[0]}", run_name="__main__")
    tables[script] = shown.getvalue().strip()
print(json.dumps(tables))
"""


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    """What each script shows of its newest results."""
    command = [sys.executable, "-c", _PRINT_ALL, json.dumps(list(TABLES))]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


@pytest.mark.parametrize(("script", "page"), TABLES.items())
def test_a_table_is_the_newest_measurement(script, page, tables):
    assert tables[script]
    assert tables[script] in (ROOT / page).read_text(encoding="utf-8")


def test_the_changelog_names_the_version():
    from colbert_integrations import __version__

    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(__version__)

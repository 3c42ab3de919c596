"""The documentation site: built without a warning, complete, linked, and free of other hosts."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from colbert_integrations import errors

pytest.importorskip("sphinx", reason="needs the extra [docs], which needs Python 3.11")

ROOT = Path(__file__).parents[2]
MODULES = ["colbert_integrations", "colbert_integrations.errors"]
MODULES += ["colbert_integrations.langchain", "colbert_integrations.llama_index", "colbert_integrations.qdrant"]
MODULES += ["colbert_integrations.vllm"]


class Page(HTMLParser):
    """What a built page loads, where it links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        said = {name: value or "" for name, value in attributes}
        self.anchors |= {said[name] for name in ("id", "name") if name in said}
        if tag == "a":
            self.links.append(said.get("href", ""))
        else:
            self.loads += [said[name] for name in ("src", "href", "srcset", "poster") if name in said]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # As `make docs` does, but for where it goes, and without running the notebooks, which test_notebooks.py does.
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "-c", "docs", ".", str(folder)]
    command += ["-D", "run_notebooks=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_make_docs_builds_the_same():
    recipe = re.search(r"^docs:.*?\n(.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)[1]
    assert "python -m sphinx --quiet --fail-on-warning -c docs . site" in recipe


def test_nothing_is_loaded_from_another_host(site, pages):
    for path, page in pages.items():
        assert [link for link in page.loads if re.match(r"(https?:)?//", link)] == [], path
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert re.findall(r"@import|url\(\s*[\"']?(?:https?:)?//[^)]*", text) == [], style


def test_each_link_inside_the_site_leads_somewhere(site, pages):
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.is_relative_to(site.resolve()), (path, link)
            assert target.exists(), (path, link)
            assert not anchor or target.suffix != ".html" or anchor in pages[site / target].anchors, (path, link)


def test_each_page_is_in_the_sidebar(site, pages):
    start = pages[site / "docs" / "index.html"]
    reached = {(site / "docs" / link.partition("#")[0]).resolve() for link in start.links}
    sources = [path.relative_to(ROOT).with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")]
    assert [str(path) for path in sources if (site / path).resolve() not in reached] == ["docs/index.html"]


@pytest.mark.parametrize("module", MODULES)
def test_each_public_name_is_documented(module, pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    names = importlib.import_module(module).__all__
    # Errors are documented once, in their own module.
    assert [name for name in names if not anchors & {f"{module}.{name}", f"{errors.__name__}.{name}"}] == []


def test_fields_of_adapters_are_documented_with_their_defaults(site):
    text = re.sub(r"<[^>]+>", "", (site / "docs" / "api" / "langchain.html").read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", text)
    assert "model: str = 'answerdotai/answerai-colbert-small-v1'" in text
    assert "top_n: int | None = 3" in text
    assert "Maximum number of documents to return. None: all." in text

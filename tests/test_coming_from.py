"""Migration tables: every right-hand cell runs, and every left-hand cell names something that stands for itself."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs" / "coming-from").glob("*.md"))
TABLES = [page for page in PAGES if page.name != "README.md"]
BUNDLED = '"bundled/all-MiniLM-L6-v2"'


def rows(page):
    """``(old, new)`` of each row of the page's tables."""
    lines = page.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    assert all(len(row) == 2 for row in cells), cells
    return [tuple(row) for row in cells if row[1] != "here"]


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def namespaces(checkpoint, tmp_path_factory):
    """What the first lines of each page define, with a tiny checkpoint in place of the bundled model."""
    made = {}

    def get(page):
        if page not in made:
            setup = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1]
            assert setup.count(BUNDLED) == 1
            made[page] = {"__name__": page.stem}
            exec(setup.replace(BUNDLED, repr(str(checkpoint("stanford")))), made[page])
        return made[page]

    return get


@pytest.fixture(autouse=True)
def folder(tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.getbasetemp())


NEW = [(page, new) for page in TABLES for _, new in rows(page) if not new.startswith("– ")]  # "– why there is nothing"


@pytest.mark.parametrize(("page", "new"), [pytest.param(*row, id=f"{row[0].stem}: {row[1]}") for row in NEW])
def test_what_is_new_runs(page, new, namespaces):
    namespace = namespaces(page)
    assert code(new), f"no code in {new!r}"
    for line in code(new):
        exec(compile(ast.parse(line), f"{page.name}: {line}", "exec"), namespace)


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.stem)
def test_each_page_says_of_which_version_it_speaks(page):
    text = page.read_text(encoding="utf-8")
    assert re.search(r"\b\d+\.\d+\.\d+", text.partition("```")[0])
    assert len(rows(page)) > 8
    assert "## What differs in the results" in text


def test_the_list_names_every_page():
    listed = re.findall(
        r"^- \[.+\]\((.+)\)$", (PAGES[0].parent / "README.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert sorted(listed) == [page.name for page in TABLES]

"""README and docs: every Python snippet runs, every link leads somewhere, and the table is the committed one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [ROOT / "benchmarks" / "README.md", ROOT / "kernel" / "README.md"]
SNIPPETS = [
    pytest.param(code, id=f"{page.name}-{number}")
    for page in PAGES
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL), 1)
]


@pytest.mark.parametrize("code", SNIPPETS)
def test_each_snippet_runs_by_itself(code: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_link_to_a_file_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


TABLES = {
    "cranfield.py": "README.md",
    "index_cranfield.py": "docs/retrieval.md",
    "index_scale.py": "docs/retrieval.md",
    "index_peers.py": "docs/retrieval.md",
    "maxsim_peers.py": "docs/performance.md",
    "encoding_peers.py": "docs/performance.md",
    "rerank_peers.py": "docs/performance.md",
    "rerank_peers.py --concurrent": "docs/performance.md",
    "observing_cost.py": "docs/observability.md",
}


@pytest.mark.parametrize(("script", "page"), TABLES.items())
def test_a_table_is_the_newest_measurement(script: str, page: str) -> None:
    name, *options = script.split()
    command = [sys.executable, str(ROOT / "benchmarks" / name), *options, "--print"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    assert shown
    assert shown in (ROOT / page).read_text(encoding="utf-8")


def test_the_changelog_names_the_version() -> None:
    from colbert_integrations import __version__

    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(__version__)

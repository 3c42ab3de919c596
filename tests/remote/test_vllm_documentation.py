"""The snippets of docs/vllm.md that need a server run against one; ``test_documentation.py`` runs the others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "vllm.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_a_snippet_that_needs_a_server_runs(number: int, double, folder) -> None:
    code = (
        SNIPPETS[number].replace("http://localhost:8000", double.url).replace("my/checkpoint", str(folder("stanford")))
    )
    scope: dict = {}
    exec(compile(code, "docs/vllm.md", "exec"), scope)
    assert double.count("/pooling") or [entry.index for entry in scope["ranked"]] in ([0], [1])


def test_there_are_such_snippets() -> None:
    assert len(SNIPPETS) == 2

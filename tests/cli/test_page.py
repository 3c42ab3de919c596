"""docs/command_line.md: its commands give what it shows, and its tables list every key of the JSON and every option."""

from __future__ import annotations

import glob
import json
import re
import shlex
from pathlib import Path

import pytest

from cli.running import Run
from colbert_integrations.cli.parser import parse

PAGE = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
STEPS = [
    (command, shown)
    for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
NUMBER = re.compile(r"\d+\.\d+")


def expanded(command: str) -> list[str]:
    """The words of a command after its name, as a shell makes them."""
    return [name for word in shlex.split(command)[1:] for name in (sorted(glob.glob(word)) if "*" in word else [word])]


def test_the_commands_give_what_is_shown(run_as_given: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)  # the page has the default width
    commands = []
    for command, shown in STEPS:
        if command.startswith("cat "):
            path = Path(command.removeprefix("cat "))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shown)
            continue
        done = run_as_given(*expanded(command), "--device", "cpu")
        commands.append(expanded(command)[0])
        # Times are others each time, and the last digit of a score on another machine.
        without_times = [re.sub(r"; \d+\.\d s, [\d,]+ a second", "", text) for text in (done.err + done.out, shown)]
        actual, expected = without_times
        assert NUMBER.sub("0", actual) == NUMBER.sub("0", expected)
        differences = zip(NUMBER.findall(actual), NUMBER.findall(expected), strict=True)
        assert all(abs(float(one) - float(other)) < 0.011 for one, other in differences)
    assert commands == ["rerank", "rerank", "explain", "index", "search", "index"]


# What the page says of their inside, it says beside them or elsewhere.
CLOSED = {"explanation", "failures", "metadata", "passage", "sources", "spec"}


def keys(data: object, path: str = "") -> set[str]:
    """The keys of JSON data, as the page writes them."""
    if isinstance(data, list):
        return set().union(*(keys(item, f"{path}[].") for item in data))
    if not isinstance(data, dict):
        return set()
    inner = [keys(value, f"{path}{key}") for key, value in data.items() if key not in CLOSED]
    return {f"{path}{key}" for key in data}.union(*inner)


@pytest.mark.parametrize(
    "argv",
    [
        ["rerank", "plane", "a.txt", "--explain"],
        ["index", "a.txt", "missing.jsonl", "--store", "kept"],
        ["search", "plane", "--store", "kept", "--explain"],
        ["info", "{model}"],
    ],
)
def test_every_key_is_in_the_tables(
    argv: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: object
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("a plane")
    Path("missing.jsonl").write_text("{}")
    run("index", "a.txt", "--store", "kept")
    name = model.settings.model  # type: ignore[attr-defined]
    data = json.loads(run(*(part.format(model=name) for part in argv), "--json").out)
    table = re.search(rf"^\| `{argv[0]}` \|.*?\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    rows = table[0].strip().splitlines()[2:]
    assert {key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])} == keys(data)


def test_the_page_names_every_option_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    named = set(re.findall(r"(--[a-z][a-z-]+)", PAGE))
    offered = set[str]()
    for command in ("rerank", "explain", "info", "index", "search"):
        with pytest.raises(SystemExit):
            parse([command, "--help"])
        offered |= set(re.findall(r"(--[a-z][a-z-]+)", capsys.readouterr().out))
    assert named - offered == set()
    assert offered - named == set()

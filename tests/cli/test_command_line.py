"""The command line as a whole: help and usage without torch, ends of all kinds, stdout and stderr."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import get_args

import pytest

from cli.running import Run
from colbert_integrations import ColBERT, __version__
from colbert_integrations.cli import main
from colbert_integrations.cli import rerank as command
from colbert_integrations.cli.output import Output
from colbert_integrations.cli.parser import parse
from colbert_integrations.index import Search

COMMANDS = ["rerank", "explain", "info", "index", "search"]


def test_help_and_usage_load_nothing_heavy() -> None:
    code = f"""
import sys
from colbert_integrations.cli import main

for argv in (["--help"], ["--version"], [], ["rank"], *([name, "--help"] for name in {COMMANDS}), ["search", "q"],
             ["search", "--store", "a"], ["explain", "q"], ["rerank", "q", "a", "--top-n", "0"]):
    try:
        main(argv)
    except SystemExit:
        pass
    else:
        raise AssertionError(argv)
loaded = {{"torch", "transformers", "numpy", "rich", "matplotlib", "regex", "filelock"}} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_the_exit_codes(run: Run) -> None:
    done = run("--help")
    assert done.code == 0
    assert all(f"    {name} " in done.out for name in COMMANDS)
    assert "130 interrupted" in done.out
    assert run("--version").out == f"colbert-integrations {__version__}\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["rank"], "invalid choice: 'rank'"),
        (["rerank", "q"], "the following arguments are required: FILE"),
        (["rerank", "q", "a", "--top-n", "0"], "argument -k/--top-n: must be a whole number from 1, not '0'"),
        (["rerank", "q", "a", "--threshold", "nan"], "argument --threshold: must be a number, not 'nan'"),
        (["rerank", "q", "a", "--threshold", "inf"], "argument --threshold: must be a number, not 'inf'"),
        (["rerank", "q", "a", "--lines", "--jsonl"], "--jsonl: not allowed with argument --lines"),
        (
            ["rerank", "q", "a", "--set", "query_length"],
            "argument --set: must be NAME=VALUE, NAME one of query_length,",
        ),
        (["rerank", "q", "a", "--set", "token=hf_x"], "argument --set: must be NAME=VALUE, NAME one of query_length,"),
        (["rerank", "q", "a", "--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
        (["index", "a", "--store", "b", "--glob", ""], "argument --glob: must be a pattern such as *.md, not ''"),
        (["index", "a", "--store", "b", "--glob", "c/**/*.md"], "no ** but **/ at its beginning, not 'c/**/*.md'"),
        (["index", "a", "--store", "b", "--glob", "**"], "--glob: must have no ** but **/ at its beginning, not '**'"),
        (["index", "a"], "the following arguments are required: --store"),
        (["index", "a", "--store", "b", "--pool-factor", "0.5"], "--pool-factor: must be a number from 1, not '0.5'"),
        (["index", "a", "--store", "b", "--pool-factor", "inf"], "--pool-factor: must be a number from 1, not 'inf'"),
        (["index", "a", "--store", "b", "--nbits", "3"], "argument --nbits: invalid choice: 3"),
        (["index", "a", "--store", "b", "--search", "first_stage"], "--search: invalid choice: 'first_stage'"),
        (["search", "q", "--store", "b", "--filter", "year"], '--filter: must be a JSON object such as {"year": 2020}'),
        (["search", "q", "--store", "b", "--filter", "[1]"], "not '[1]'"),
        (["search", "q", "--store", "b", "--filter", '{"a":' + "[" * 100_000], '{"year": 2020}, not \'{"a":[['),
        (["search", "q", "--store", "b", "-k", "0"], "argument -k/--top-n: must be a whole number from 1, not '0'"),
        (["search", "--store", "b"], "give one query, or several by --queries"),
        (["search", "q", "--queries", "-", "--store", "b"], "give one query, or several by --queries"),
        (["info", "a", "--model", "b"], "give the model once, as MODEL or by --model"),
    ],
)
def test_errors_of_usage_say_what_would_be_right(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert len(captured.err) < 5000


@pytest.mark.parametrize(
    "argv",
    [
        ["rerank", "{q}", "a.txt", "--lines", "b.txt"],
        ["rerank", "--lines", "{q}", "a.txt", "b.txt"],
        ["rerank", "--lines", "--", "{q}", "a.txt", "b.txt"],
        ["explain", "{q}", "--html", "out", "a.txt"],
        ["explain", "--html", "out", "{q}", "a.txt"],
        ["search", "--store", "kept", "{q}"],
        ["search", "{q}", "--store", "kept"],
    ],
)
def test_options_may_stand_anywhere(argv: list[str]) -> None:
    query = "-how" if "--" in argv else "how"
    args = parse([part.format(q=query) for part in argv])
    assert args.query == query
    assert args.command == argv[0]
    if argv[0] == "rerank":
        assert (args.files, args.form) == (["a.txt", "b.txt"], "lines")
    if argv[0] == "explain":
        assert (args.file, args.html) == ("a.txt", "out")


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        *((["info", "--dtype", dtype], "dtype", dtype) for dtype in ("float32", "bfloat16", "float16", "int8")),
        *((["index", "a", "--store", "b", "--nbits", bits], "nbits", int(bits)) for bits in "842"),
        *((["search", "a", "--store", "b", "--search", mode], "search", mode) for mode in get_args(Search)),
        (["search", "q", "--store", "b"], "search", None),
        (["index", "a", "--store", "b", "--pool-factor", "1.5"], "pool_factor", 1.5),
        (["index", "a", "--store", "b", "--pool-factor", "1"], "pool_factor", 1),
        (["index", "a", "--store", "b"], "pool_factor", 1),
        (["search", "q", "--store", "b"], "top_n", 10),
        *((["search", "q", "--store", "b", option, "3"], "top_n", 3) for option in ("-k", "--top-n")),
        *((["rerank", "q", "a", option, "3"], "top_n", 3) for option in ("-k", "--top-n")),
        *((["info", *named], "model", "a") for named in (["a"], ["--model", "a"])),
        (["info"], "model", None),
    ],
)
def test_options_take_what_the_library_takes(argv: list[str], name: str, value: object) -> None:
    assert getattr(parse(argv), name) == value


def test_warnings_are_messages(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ColBERT.rank

    def rank(*arguments: object, **options: object) -> object:
        warnings.warn("something is odd", UserWarning, stacklevel=2)
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ColBERT, "rank", rank)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert run("rerank", "plane", "-", stdin="a").err == "warning: something is odd\n"
        assert run("rerank", "plane", "-", "--quiet", stdin="a").err == ""


def test_an_interrupted_command_ends_with_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "open_model", interrupted)
    done = run("rerank", "plane", "-", stdin="a")
    assert (done.code, done.out, done.err) == (130, "", "colbert-integrations: interrupted\n")


def test_errors_that_are_none_of_ours_are_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr(command, "open_model", broken)
    done = run("rerank", "plane", "-", stdin="a")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Traceback (most recent call last):\n")
    assert "in broken" in done.err
    assert done.err.endswith("\nZeroDivisionError: in the middle\n")


def buffered() -> dict[str, str]:
    """An environment in which Python keeps what is written to stdout, and writes it once more at its end."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX pipes")
@pytest.mark.parametrize("how", [["--json"], []], ids=["json", "colour"])
def test_a_closed_pipe_is_quiet(how: list[str], model: ColBERT, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the plane")
    argv = ["rerank", "plane", str(tmp_path / "a.txt"), *how, "--model", model.settings.model, "--device", "cpu"]
    command = [sys.executable, "-m", "colbert_integrations", *argv]
    env = {**buffered(), "FORCE_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("argv", [["rerank", "plane"], ["explain", "plane"], ["index", "--store", "kept"]])
def test_a_closed_stdin_is_an_error(
    argv: list[str],
    model: ColBERT,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it
    assert main([*argv, "-", "--quiet", "--model", model.settings.model, "--device", "cpu"]) == 2
    assert capsys.readouterr() == ("", "colbert-integrations: - can't be read: stdin is closed\n")


def test_a_closed_stdout_is_an_error_before_any_work(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", None)  # as Python has it
    assert main(["rerank", "plane", "missing.txt"]) == 2
    assert capsys.readouterr().err == "colbert-integrations: can't write to stdout: it is closed\n"


class _Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "full")


@pytest.mark.parametrize("stderr", [None, _Full()], ids=["closed", "full"])
def test_an_error_that_nobody_can_hear_is_an_error(
    stderr: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr)
    assert main(["rerank", "plane", "missing.txt", "--debug"]) == 2
    assert capsys.readouterr().out == ""


def test_a_name_does_not_command_the_terminal(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31mred\nnext.txt").write_bytes(b"\xff")
    (tmp_path / "good.txt").write_text("the plane")
    done = run("rerank", "plane", *sorted(tmp_path.iterdir()))
    assert done.code == 1
    assert "a\ufffd[31mred next.txt: is not UTF-8" in done.err
    assert "\x1b" not in done.err
    assert done.err.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_stdout_is_an_error(model: ColBERT, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the plane")
    argv = ["rerank", "plane", str(tmp_path / "a.txt"), "--model", model.settings.model, "--device", "cpu"]
    command = [sys.executable, "-m", "colbert_integrations", *argv]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=buffered())
    assert done.stderr == f"colbert-integrations: can't write to stdout: {os.strerror(errno.ENOSPC)}\n"
    assert done.returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_without_a_letter_gets_it_escaped(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    output = Output(as_json=False, quiet=False)
    output.data({"text": "狐 ü"})
    output.line("狐", (" ü", "bold"))
    output.flush()
    data, line = written.getvalue().decode(encoding).splitlines()
    assert json.loads(data) == {"text": "狐 ü"}
    assert ("狐" in data) == (encoding == "utf-8")
    assert line == {"ascii": "\\u72d0 \\xfc", "latin-1": "\\u72d0 ü", "utf-8": "狐 ü"}[encoding]


def test_the_script_is_installed() -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '[project.scripts]\ncolbert-integrations = "colbert_integrations.cli:main"\n' in project


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("query_length=8", 8),
        ('skiplist_words=["."]', ["."]),
        ("query_marker=", ""),
        ("query_prompt=a=b: ", "a=b: "),
        pytest.param("query_prompt=" + "[" * 100_000, "[" * 100_000, id="deep"),
        ("revision=2024", "2024"),  # a string in any case
        ('revision="2024"', "2024"),
        ("cache_dir=1e3", "1e3"),
        ("revision=null", None),
    ],
)
def test_a_setting_is_json_or_else_a_string(said: str, value: object) -> None:
    assert parse(["info", "model", "--set", said]).settings == [(said.partition("=")[0], value)]

"""explain: the library's own explanation, to read, as JSON, as a page and as a heat map."""

from __future__ import annotations

import html.parser
import json
import sys
from pathlib import Path

import pytest
from matplotlib import image

from cli.running import Run
from colbert_integrations import ColBERT

QUERY = "how does a plane fly?"
TEXT = "the wings lift a plane into the sky"


def test_it_prints_the_librarys_explanation(run: Run, model: ColBERT, notes: Path) -> None:
    expected = f"{model.explain(QUERY, TEXT)}\n"
    for given in (["notes/wings.txt"], ["--text", TEXT], ["-"]):
        done = run("explain", QUERY, *given, stdin=TEXT)
        assert (done.code, done.out, done.err) == (0, expected, "")


def test_a_text_of_several_lines_or_none_is_one_document(run: Run, model: ColBERT) -> None:
    lines = "the wings\nlift a plane\n\ninto the sky"
    assert run("explain", QUERY, "-", stdin=lines).out == f"{model.explain(QUERY, lines)}\n"
    assert run("explain", QUERY, "--text", "").out == f"{model.explain(QUERY, '')}\n"


def test_json_is_the_explanation_as_data(run: Run, model: ColBERT) -> None:
    data = run("explain", QUERY, "--text", TEXT, "--json").data
    assert data == json.loads(json.dumps(model.explain(QUERY, TEXT).as_dict()))


def test_the_names_in_json_are_those_that_programs_read(run: Run) -> None:
    data = run("explain", QUERY, "--text", TEXT, "--json").data
    assert list(data) == [
        *("query", "document", "score", "matches", "pooled", "query_cut", "document_cut", "shares", "passage"),
    ]
    (match, *_), (share, *_) = data["matches"], data["shares"]
    assert list(match) == ["query_token", "document_token", "similarity", "query_index", "document_index"]
    assert list(share) == ["token", "share", "query_indices"]
    for token in (match["query_token"], match["document_token"], share["token"]):
        assert list(token) == ["text", "start", "stop"]
    assert list(data["passage"]) == ["start", "stop", "text", "share"]


def test_on_a_terminal_it_is_in_colour(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # In full colour: rich keeps codes with a style, and would use those of fewer colours in other tests too.
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for command in (["explain", QUERY, "--text", TEXT], ["rerank", QUERY, "-", "--explain"]):
        shown = run(*command, stdin=TEXT).out
        assert "\x1b[" in shown
    assert "\x1b[" not in run("rerank", QUERY, "-", "--explain", "--json", stdin=TEXT).out


def test_without_the_extra_it_is_plain_and_a_heat_map_says_what_it_needs(
    run: Run, model: ColBERT, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    for module in ("rich.console", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    assert run("explain", QUERY, "--text", TEXT).out == f"{model.explain(QUERY, TEXT)}\n"
    done = run("explain", QUERY, "--text", TEXT, "--plot", "a.png")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("needs an optional dependency: pip install 'colbert-integrations[explain]'\n")


class _Page(html.parser.HTMLParser):
    """The tags of a page, and its text by tag."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.texts, self._open = list[str](), dict[str, str](), list[str]()

    def handle_starttag(self, tag: str, attributes: object) -> None:
        self.tags.append(tag)
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data


def test_a_page_shows_the_words_and_nothing_of_them_is_markup(run: Run, tmp_path: Path) -> None:
    query, text = "<script> plane", "a plane & <b>wings</b>"
    done = run("explain", query, "--text", text, "--html", tmp_path / "ü.html")
    assert done.err == f"wrote {tmp_path / 'ü.html'}\n"
    page = _Page()
    written = (tmp_path / "ü.html").read_text(encoding="utf-8")
    assert '<meta charset="utf-8">' in written
    page.feed(written)
    assert page._open == []
    assert page.texts["title"] == page.texts["h1"] == query
    assert "div" in page.tags
    assert not {"script", "b"} & set(page.tags)


def test_a_heat_map_is_a_picture(run: Run, tmp_path: Path) -> None:
    done = run("explain", QUERY, "--text", TEXT, "--plot", tmp_path / "a.png")
    assert done.err == f"wrote {tmp_path / 'a.png'}\n"
    pixels = image.imread(tmp_path / "a.png")
    assert pixels.shape[0] > 100
    assert pixels.std() > 0.05


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.txt"], "missing.txt: can't be read: No such file or directory"),
        (["two.jsonl"], "two.jsonl has 2 documents, and one is explained: pass it by --text"),
        (["none.jsonl"], "none.jsonl has 0 documents, and one is explained: pass it by --text"),
        (["--text", TEXT, "--html", "no/a.html"], "can't write no/a.html: No such file or directory"),
        (["--text", TEXT, "--html", "."], "can't write .: Is a directory"),
        (["--text", TEXT, "--plot", "no/a.png"], "can't write no/a.png: No such file or directory"),
        (["--text", TEXT, "--plot", "a"], "can't write a: give it a suffix such as .png, .svg or .pdf"),
        (["--text", TEXT, "--plot", "a.xyz"], "can't write a.xyz: Format 'xyz' is not supported"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], said: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("two.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    Path("none.jsonl").write_text("\n")
    done = run("explain", QUERY, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"colbert-integrations: {said}")
    assert done.err.count("\n") == 1


def test_one_of_file_and_text_is_wanted(run: Run) -> None:
    for arguments in ([], ["a.txt", "--text", "a"]):
        done = run("explain", QUERY, *arguments)
        assert done.code == 2
        assert done.err.endswith("explain: error: give one FILE, or a text by --text\n")

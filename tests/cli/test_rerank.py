"""rerank: the library's own ranking, of texts from any kind of file; what can't be read is told, the rest is ranked."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.running import NOTES, Run
from colbert_integrations import ColBERT

QUERY = "how does a plane fly?"


def test_files_are_ranked_as_the_library_ranks_their_texts(run: Run, model: ColBERT, notes: Path) -> None:
    files = sorted(f"notes/{name}" for name in NOTES)
    texts = [(Path(file)).read_text(encoding="utf-8") for file in files]
    done = run("rerank", QUERY, *files, "--json")
    assert (done.code, done.err) == (0, "")
    ranked = model.rank(QUERY, texts)
    assert done.data == {
        "query": QUERY,
        "model": model.settings.model,
        "results": [
            {
                "rank": rank,
                "score": entry.score,
                "index": entry.index,
                "source": files[entry.index],
                "line": None,
                "id": None,
                "text": texts[entry.index],
            }
            for rank, entry in enumerate(ranked, 1)
        ],
    }


def test_patterns_are_looked_up_where_no_shell_has_done_so(run: Run, notes: Path) -> None:
    files = sorted(f"notes/{name}" for name in NOTES if "/" not in name)
    expected = run("rerank", QUERY, *files, "--json").out
    assert run("rerank", QUERY, "notes/*.txt", "--json").out == expected
    (notes / "bread[1].txt").write_text("bread")
    done = run("rerank", QUERY, "notes/bread[1].txt", "notes/*.md", "--json")  # one is a file's name, one no file's
    assert [result["source"] for result in done.data["results"]] == ["notes/bread[1].txt"]
    assert (done.code, "notes/*.md: can't be read" in done.err) == (1, True)


def test_options_are_those_of_rank(run: Run, model: ColBERT, notes: Path) -> None:
    texts = list(NOTES.values())
    files = [f"notes/{name}" for name in NOTES]
    texts = [Path(file).read_text(encoding="utf-8") for file in files]
    every = model.rank(QUERY, texts, normalize_scores=True)
    threshold = every[2].score
    done = run("rerank", QUERY, *files, "--json", "--normalize", "--threshold", threshold)
    assert [(entry["index"], entry["score"]) for entry in done.data["results"]] == [
        (entry.index, entry.score) for entry in every if entry.score >= threshold
    ]
    for option in ("--top-n", "-k"):
        done = run("rerank", QUERY, *files, "--json", option, 2)
        assert [entry["index"] for entry in done.data["results"]] == [entry.index for entry in every[:2]]


def test_settings_reach_the_model(run: Run, model: ColBERT) -> None:
    other = ColBERT(model.settings.model, device="cpu", query_length=8, query_marker="")
    done = run("rerank", QUERY, "-", "--json", "--set", "query_length=8", "--set", 'query_marker=""', stdin="a plane")
    assert done.data["results"][0]["score"] == other.rank(QUERY, ["a plane"])[0].score
    assert other.rank(QUERY, ["a plane"])[0].score != model.rank(QUERY, ["a plane"])[0].score


def test_each_line_can_be_a_document(run: Run, model: ColBERT, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_bytes("the sky\r\n\n  \n狐 runs\nthe plane".encode())
    done = run("rerank", QUERY, tmp_path / "lines.txt", "--lines", "-", "--json", stdin="a\nb\n")
    texts = ["the sky", "狐 runs", "the plane", "a", "b"]
    lines = [1, 4, 5, 1, 2]
    sources = [str(tmp_path / "lines.txt")] * 3 + ["-"] * 2
    assert [(entry["text"], entry["line"], entry["source"]) for entry in done.data["results"]] == [
        (texts[entry.index], lines[entry.index], sources[entry.index]) for entry in model.rank(QUERY, texts)
    ]


def test_json_lines_have_a_text(run: Run, tmp_path: Path) -> None:
    lines = [
        {"text": "the sky", "id": "a"},
        {"_id": "b", "text": "a plane \ud83d\ude80", "id": None},
        {"text": "bread"},
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.JSONL.GZ").write_bytes(gzip.compress(content))
    expected = {("a", "the sky", 1), ("b", "a plane 🚀", 2), (None, "bread", 3)}
    for given in (["a.jsonl"], ["b.JSONL.GZ"], ["a.jsonl", "--lines"], ["-", "--jsonl"]):
        files = [tmp_path / name if "." in name else name for name in given]
        done = run("rerank", QUERY, *files, "--json", stdin=content)
        assert {(entry["id"], entry["text"], entry["line"]) for entry in done.data["results"]} == expected
        assert done.code == 0


def test_a_document_without_vectors_has_no_score_in_json(run: Run, checkpoint: Callable[[str], Path]) -> None:
    markers = ("--set", 'query_marker=""', "--set", 'document_marker=""')
    done = run("rerank", "a cat", "-", "--json", "--model", checkpoint("pylate_nobos"), *markers, stdin="")
    assert (done.code, done.data["results"][0]["score"]) == (0, None)


def test_stdin_is_one_document(run: Run) -> None:
    results = run("rerank", QUERY, "-", "--json", stdin="﻿one\r\ntwo\n").data["results"]
    assert [(entry["text"], entry["source"], entry["line"]) for entry in results] == [("one\ntwo\n", "-", None)]


def test_what_can_not_be_read_is_told_and_the_rest_is_ranked(run: Run, notes: Path, tmp_path: Path) -> None:
    (notes / "picture.png").write_bytes(b"\x89PNG\r\n")
    (notes / "null.txt").write_bytes(b"a\0b")
    (notes / "torn.txt.gz").write_bytes(gzip.compress(b"text" * 99)[:-9])
    (notes / "no.gz").write_bytes(b"text")
    (notes / "odd.gz").write_bytes(gzip.compress(b"text" * 99)[:10] + b"\xff" * 20)
    lines = [
        "{",
        "[]",
        '{"txt": 1}',
        '{"text": 1}',
        '{"text": "a", "x": NaN}',
        '{"text": "a", "id": 1e999}',
        '{"text": "\\ud800"}',
        "[" * 20000,
        '{"text": "b"}',
    ]
    (notes / "bad.jsonl").write_text("\n".join(lines) + "\n\xff", encoding="latin-1")
    bad = ["picture.png", "null.txt", "torn.txt.gz", "no.gz", "odd.gz", "bad.jsonl", "missing.txt", "Straße"]
    done = run("rerank", QUERY, *(f"notes/{name}" for name in ["wings.txt", *bad]), "--json")
    assert done.code == 1
    assert [entry["text"] for entry in done.data["results"]] == [NOTES["wings.txt"], "b"]
    said = done.err.splitlines()
    expected = [
        r"notes/picture.png: is not UTF-8 text: byte 0x89 at 0",
        r"notes/null.txt: is not text: it has a NUL character at 1",
        r"notes/torn.txt.gz: can't be read: .*end.of.stream.*",
        r"notes/no.gz: can't be read: Not a gzipped file .*",
        r"notes/odd.gz: can't be read: Error -3 .*",
        r"notes/bad.jsonl:1: is not JSON: .*",
        r'notes/bad.jsonl:2: is not a JSON object with a "text" that is a string',
        r'notes/bad.jsonl:3: is not a JSON object with a "text" that is a string',
        r'notes/bad.jsonl:4: is not a JSON object with a "text" that is a string',
        r"notes/bad.jsonl:5: is not JSON, which has no NaN",
        r"notes/bad.jsonl:6: has a number that is too large: 1e999",
        r"notes/bad.jsonl:7: is not valid Unicode: it has half a surrogate pair",
        r"notes/bad.jsonl:8: is not JSON: .*",
        r"notes/bad.jsonl:10: is not UTF-8 text: byte 0xff at 0",
        r"notes/missing.txt: can't be read: No such file or directory",
        r"notes/Straße: is a folder: name its files, such as notes/Straße/\*, or index it and search",
    ]
    assert len(said) == len(expected)
    for line, pattern in zip(said, expected, strict=True):
        assert re.fullmatch(f"colbert-integrations: {pattern}", line), line


def test_a_file_of_entries_that_is_taken_whole_is_told(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.CSV", "c.tsv.gz", "d.jsonl", "e.txt"):
        content = b'{"text": "a plane"}\n{"text": "bread"}\n'
        Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    done = run("rerank", QUERY, "a.json", "b.CSV", "c.tsv.gz", "d.jsonl", "e.txt", "a.json", "missing.json", "--json")
    assert (done.code, len(done.data["results"])) == (1, 7)
    *told, missing = done.err.splitlines()
    advice = "write them as JSON lines (.jsonl, or --jsonl), or say --lines, which makes one of each line"
    assert told == [
        f"warning: {name} is taken as one document; to have one for each entry, {advice}"
        for name in ("a.json", "b.CSV", "c.tsv.gz")
    ]
    assert missing == "colbert-integrations: missing.json: can't be read: No such file or directory"
    for option, documents in (("--jsonl", 2), ("--lines", 2), ("--quiet", 1)):
        done = run("rerank", QUERY, "a.json", "--json", option)
        assert (done.code, done.err, len(done.data["results"])) == (0, "", documents)


def test_nothing_that_can_be_read_is_an_error(run: Run, notes: Path) -> None:
    done = run("rerank", QUERY, "notes/missing.txt")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "colbert-integrations: nothing to rank: none of the texts could be read"


def test_no_texts_give_no_results(run: Run) -> None:
    assert run("rerank", QUERY, "-", "--lines", "--json").data["results"] == []
    done = run("rerank", QUERY, "-", "--lines")
    assert (done.code, done.out, done.err) == (0, "", "nothing to show\n")


def test_readable_output_has_rank_score_name_and_text(run: Run, model: ColBERT, notes: Path) -> None:
    files = ["notes/bread.txt", "notes/wings.txt"]
    first, second = model.rank(QUERY, [NOTES["bread.txt"], NOTES["wings.txt"]])
    names = [(files[entry.index], NOTES[Path(files[entry.index]).name], entry.score) for entry in (first, second)]
    assert run("rerank", QUERY, *files).out == "".join(
        f"{rank:>3}. {score:6.2f}  {file}\n     {text}\n" for rank, (file, text, score) in enumerate(names, 1)
    )


def test_explanations_come_with_the_results(run: Run, model: ColBERT, notes: Path) -> None:
    text = NOTES["wings.txt"]
    explanation = model.explain(QUERY, text)
    result = run("rerank", QUERY, "notes/wings.txt", "--json", "--explain").data["results"][0]
    assert result["explanation"] == json.loads(json.dumps(explanation.as_dict()))
    shown = run("rerank", QUERY, "notes/wings.txt", "--explain").out.splitlines()
    assert shown[1] == f"     {explanation.passage.text}"  # type: ignore[union-attr]
    asked, met, share = explanation.words(limit=1)[0]
    assert shown[2].startswith(f"     {asked} → {met} {share:.2f}, ")


def test_a_passage_in_colour_is_one_paragraph_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = run("rerank", QUERY, "-", "--explain", stdin="the wings\n\nlift a plane\ninto the sky").out
    assert "\x1b[" in shown
    _, passage, _ = re.sub(r"\x1b\[[\d;]*m", "", shown).splitlines()
    assert passage.rstrip() == "     the wings lift a plane into the sky"


@pytest.mark.parametrize("options", [[], ["--explain"]])
def test_texts_and_names_do_not_command_the_terminal(options: list[str], run: Run, tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m.txt").write_text("\x1b]0;title\x07 the plane \x9b31m", encoding="utf-8")
    shown = run("rerank", QUERY, *tmp_path.iterdir(), *options).out
    assert "the plane" in shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", shown)


def test_a_pair_of_words_is_shown_once_by_its_best_share(run: Run, model: ColBERT) -> None:
    query, text = "fox fox fox", "a fox"
    shares = [f"{share:.2f}" for *pair, share in model.explain(query, text).words() if pair == ["fox", "fox"]]
    assert len(set(shares)) > 1
    shown = run("rerank", query, "-", "--explain", stdin=text).out
    assert re.findall(r"fox → fox ([\d.]+)", shown) == [max(shares)]


def test_the_six_pairs_of_words_that_matched_best_are_shown(run: Run, model: ColBERT) -> None:
    query, text = "how does a quick red fox fly over the river", "the fox jumps over a river in the red sky"
    pairs: dict[tuple[str, str], float] = {}
    for asked, met, share in model.explain(query, text).words():  # strongest first
        pairs.setdefault((asked, met), share)
    assert len(pairs) > 6
    shown = run("rerank", query, "-", "--explain", stdin=text).out.splitlines()[-1]
    best = [f"{asked} → {met} {share:.2f}" for (asked, met), share in pairs.items()][:6]
    assert shown.strip().split(", ") == best


def test_words_that_are_very_long_are_cut(run: Run) -> None:
    shown = run("rerank", "plane " + "x" * 2000, "-", "--explain", stdin="y" * 100 + " plane").out
    assert "x" * 59 + "… → " in shown
    assert "x" * 60 not in shown


@pytest.mark.parametrize("columns", ["40", "200"])
def test_texts_are_wrapped_to_the_terminal(columns: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    shown = run("rerank", QUERY, "-", stdin="the plane " * 20).out.splitlines()
    assert max(map(len, shown)) <= int(columns) < max(map(len, shown)) + 10

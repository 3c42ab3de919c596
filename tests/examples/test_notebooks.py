"""The notebooks, run as on a fresh machine without a network: what they show; how they lie in git; the site."""

from __future__ import annotations

import re
import sys
from html import unescape
from pathlib import Path

import nbformat
import pytest

import offline
from colbert_integrations.checkpoint import HubOptions, locate
from vllm_double import Double

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
sys.path.insert(0, str(ROOT / "docs"))

import notebooks  # noqa: E402

NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


class Ran:
    """A notebook that was run."""

    def __init__(self, notebook):
        self.cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
        self.outputs = [output for cell in self.cells.values() for output in cell.outputs]

    def printed(self, cell):
        return "".join(output.text for output in self.cells[cell].outputs if output.output_type == "stream")

    def shown(self, cell, kind="text/html"):
        [found] = [output.data[kind] for output in self.cells[cell].outputs if kind in output.get("data", {})]
        return found

    def rows(self, cell):
        """The rows of a table, as texts, its header first."""
        rows = re.findall(r"<tr.*?</tr>", self.shown(cell), re.DOTALL)
        cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        return [[unescape(re.sub(r"<[^>]+>", "", cell)).strip() for cell in row] for row in cells]


@pytest.fixture(scope="module")
def server():
    """Stands for a vLLM server of the bundled model."""
    server = Double(locate("bundled/all-MiniLM-L6-v2", HubOptions()))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def run(tmp_path_factory, server):
    """Runs a notebook once, in an empty home, where there is a vLLM server."""
    environment, ran = {**offline.environment(tmp_path_factory.mktemp("home")), "VLLM_URL": server.url}, {}

    def run(name):
        if name not in ran:
            ran[name] = Ran(notebooks.run(EXAMPLES / f"{name}.ipynb", environment))
        return ran[name]

    return run


# ------------------------------------------------------------------------------------------------------------ as run


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_nothing_complains(run, name):
    outputs = run(name).outputs
    assert outputs
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []


def test_one_line_brings_the_answer_up_in_langchain(run):
    ran = run("1_langchain_rag")
    answer = "Default parameter values are evaluated"
    before, after = ran.rows("before")[1:], ran.rows("after")[1:]
    assert len(before) == len(after) == 3
    assert not any(answer in row[3] for row in before)
    assert answer in after[0][4]
    assert 1 >= float(after[0][1]) > float(after[1][1]) > float(after[2][1]) > 0
    assert int(after[0][2]) > 3


def test_the_chain_hands_the_answer_to_the_model(run):
    prompt = run("1_langchain_rag").printed("chain")
    assert "Default parameter values are evaluated" in prompt
    assert prompt.endswith("Question: why does my default argument keep its value between calls\n")


def test_the_explanation_is_shown_and_says_why_bm25_was_wrong(run):
    ran = run("1_langchain_rag")
    assert "colbert-explanation" in ran.shown("why")
    right, wrong = zip(*[(float(row[3]), float(row[5])) for row in ran.rows("why-not")[1:]], strict=True)
    assert sum(right) > sum(wrong)


def test_one_argument_brings_the_answer_up_in_llama_index(run):
    ran = run("2_llama_index_query_engine")
    assert not any("Context Managers" in row[2] for row in ran.rows("before")[1:])
    after = ran.rows("after")[1:]
    assert after[0][3] == "With Statement Context Managers"
    assert int(after[0][2]) > 3
    assert "Enter the runtime context" in ran.printed("response")
    assert "colbert-explanation" in ran.shown("why")
    assert ran.shown("heat-map", "image/png")


def test_a_threshold_leaves_questions_without_an_answer(run):
    ran = run("2_llama_index_query_engine")
    scores = [float(row[2]) for row in ran.rows("several")[1:]]
    assert min(scores[:2]) > 0.4 > max(scores[2:])
    assert re.findall(r"^(\d) nodes", ran.printed("threshold"), re.MULTILINE) == ["3", "3", "0", "0"]


def test_files_are_searched_and_filtered(run):
    ran = run("3_retriever_over_your_files")
    assert ran.rows("search")[1][2] == "the-break-statement.md"
    filtered = ran.rows("filter")[1:]
    assert len(filtered) == 3
    assert all(row[2] != "the-break-statement.md" and int(row[3]) < 500 for row in filtered)
    assert all("async" in row[4] for row in ran.rows("filter-function")[1:])


def test_what_is_there_is_not_encoded_again(run):
    printed = run("3_retriever_over_your_files").printed("change")
    assert re.search(r"^1 of \d+ passages encoded$", printed, re.MULTILINE)
    assert "the-break-statement.md#1 is found now" in printed
    assert "To leave two loops at once" in printed


def test_both_frameworks_merge_alike(run):
    ran = run("3_retriever_over_your_files")
    in_langchain, in_llama_index = (ran.rows(cell)[1:] for cell in ("hybrid-table", "llama-index-table"))
    assert [row[-1] for row in in_langchain] == [row[-1] for row in in_llama_index]
    assert "__debug__" in in_langchain[0][-1]
    assert int(in_langchain[0][1]) > 1, "BM25 alone has another first"


def test_the_measures_are_what_the_text_says_of_them(run):
    ran = run("4_measure_it")
    header, *rows = ran.rows("means")
    assert header[1:] == ["nDCG@10", "R@20"]
    means = {row[0]: (float(row[1]), float(row[2])) for row in rows}
    assert list(means) == ["BM25", "dense", "BM25, ColBERT reranks", "ColBERT"]
    assert max(means, key=means.get) == "dense"
    assert means["BM25, ColBERT reranks"][1] == means["BM25"][1], "a reranker finds nothing new"
    assert all(0.3 < value < 1 for pair in means.values() for value in pair)
    assert ran.shown("plot", "image/png")


def test_moving_to_qdrant_encodes_nothing_and_finds_the_same(run):
    ran = run("5_grow")
    moved, encoded = map(int, re.fullmatch(r"(\d+) passages moved, (\d+) encoded\n", ran.printed("move")).groups())
    assert (moved > 50, encoded) == (True, 0)
    header, *rows = ran.rows("same")
    assert header[1:5] == ["in memory", "score", "on Qdrant", "score there"]
    assert len(rows) == 3
    assert [row[1] for row in rows] == [row[3] for row in rows]
    assert [float(row[2]) for row in rows] == pytest.approx([float(row[4]) for row in rows], abs=0.011)
    assert 'The "global" statement' in rows[0][5]
    found, asked, difference = re.fullmatch(
        r"(\d) of (\d) questions find the same ten in the same order\.\nScores differ by (\S+) at most\.\n",
        ran.printed("same-more"),
    ).groups()
    assert found == asked
    assert 0 <= float(difference) < 1e-3, "what float16 rounds"


def test_a_location_names_server_and_collection(run):
    shown = run("5_grow").shown("location", "text/plain")
    assert shown == "QdrantStore('http://localhost:6333', 'reference', float16)"


def test_what_an_interruption_left_is_not_encoded_again(run):
    ran = run("5_grow")
    [before] = re.findall(r"^(\d+) passages moved", ran.printed("move"))
    [stored] = re.findall(r"^the source is gone: (\d+) new passages are stored$", ran.printed("interrupted").strip())
    said = r"(\d+) documents: (\d+) encoded, (\d+) there already;"
    again, once_more = [tuple(map(int, found)) for found in re.findall(said, ran.printed("resumed"))]
    there = int(before) + int(stored)
    assert int(stored) > 0 < again[1]
    assert again == (again[0], again[0] - there, there)
    assert once_more == (again[0], 0, again[0])


def test_both_frameworks_search_and_filter_the_collection(run):
    ran = run("5_grow")
    in_langchain, in_llama_index = ran.rows("langchain"), ran.rows("llama-index")
    assert in_langchain == in_llama_index
    assert len(in_langchain) == 4
    assert "Default parameter values are evaluated" in in_langchain[1][4]
    assert "statement" not in in_langchain[1][2], "the index in memory did not have it"
    others = ran.rows("filter")[1:]
    assert len(others) == 3
    assert [row[1] for row in others] == [row[2] for row in others]
    assert {row[3] for row in others}.isdisjoint({in_langchain[1][2]})


def test_a_first_stage_is_named_or_refused_and_loses_some(run):
    ran = run("5_grow")
    assert ran.printed("refused").startswith("search='first_stage' needs a first stage")
    header, *rows = ran.rows("stage-table")
    assert header[1:] == ["candidates", "of all passages", "exact ten found"]
    shares = [int(row[3].removesuffix("%")) for row in rows]
    assert shares == sorted(shares)
    assert 50 < shares[0] < 100, "what the first stage does not find is lost"


def test_what_comes_back_from_qdrant_is_as_it_was(run):
    every, before, equal = map(int, re.findall(r"\d+", run("5_grow").printed("back")))
    assert every > before == equal > 50


def test_vllm_gives_the_same_vectors_and_ranking(run, server):
    ran = run("5_grow")
    assert ran.printed("vllm-model") == f"VLLMForward(['{server.url}'])\n"
    said = r"(\d+) vectors of (\d+) passages differ by (\S+) at most\.\nThe ranking is the same\.\n"
    vectors, passages, difference = re.fullmatch(said, ran.printed("vllm-same")).groups()
    assert int(vectors) > 10 * int(passages)
    assert 0 <= float(difference) < 1e-5
    # What went there: the passages to be compared, those for Qdrant, a probe and a question.
    sent = [len(ids) for path, body in server.asked if path == "/pooling" for ids in body["input"]]
    assert len(sent) >= 2 * int(passages) + 2
    assert sum(sent) > int(vectors)


def test_what_vllm_encoded_is_found_by_the_model_here(run):
    printed = run("5_grow").printed("vllm-both")
    assert printed.startswith("20 documents: 20 encoded, 0 there already;")
    assert printed.endswith("\nThe first five are the same.\n")


def test_without_a_server_the_cells_of_vllm_say_so(tmp_path):
    cells = nbformat.read(EXAMPLES / "5_grow.ipynb", as_version=4).cells
    chosen = [cell for cell in cells if cell.cell_type == "code" and cell.id.split("-")[0] in ("model", "vllm")]
    nbformat.write(nbformat.v4.new_notebook(cells=chosen), tmp_path / "vllm.ipynb")
    environment = offline.environment(tmp_path)
    environment.pop("VLLM_URL", None)
    ran = Ran(notebooks.run(tmp_path / "vllm.ipynb", environment))
    assert [ran.printed(cell) for cell in ran.cells] == [
        "",
        "VLLMForward(['http://gpu-1:8000', 'http://gpu-2:8000'])\n",
        *["VLLM_URL names no server, so this cell did nothing.\n"] * 2,
    ]


# ------------------------------------------------------------------------------------------------------------ in git


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_valid_and_cleared(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.read_text(encoding="utf-8") == notebooks.cleared(path), "`make clear-notebooks` does it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_begins_with_what_it_needs_and_its_model(path):
    first, *_ = cells = nbformat.read(path, as_version=4).cells
    assert first.source.startswith("# ")
    assert "pip install -e '.[notebooks]'" in first.source
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    assert code[0].startswith('MODEL = "bundled/all-MiniLM-L6-v2"\n')
    assert not any("bundled/" in source for source in code[1:])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_fits_the_page_and_names_no_machine(path):
    cells = nbformat.read(path, as_version=4).cells
    assert [
        line for cell in cells for line in cell.source.splitlines() if re.search(r"/(home|root|tmp|Users)/", line)
    ] == []
    code = [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    assert [line for line in code if len(line) > 100] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_of_a_notebook_lead_somewhere(path):
    cells = nbformat.read(path, as_version=4).cells
    links = [
        link for cell in cells if cell.cell_type == "markdown" for link in re.findall(r"\]\(([^)#]+)", cell.source)
    ]
    assert links
    assert [link for link in links if not (link.startswith("https://") or (path.parent / link).exists())] == []


def test_each_notebook_is_listed():
    listed = [(ROOT / page).read_text(encoding="utf-8") for page in ("examples/README.md", "docs/index.md")]
    assert [name for name in NAMES if not all(f"{name}.ipynb)" in text for text in listed)] == []


# ---------------------------------------------------------------------------------------------------------- in the site


def notebook(path, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Title"), *cells]), path)
    return path


def test_outputs_are_kept_and_progress_bars_are_not(tmp_path):
    bar = "from tqdm.notebook import tqdm\nfor number in tqdm(range(3)): pass\nprint(number)"
    ran = notebooks.run(notebook(tmp_path / "one.ipynb", bar, "import os; os.getcwd()"))
    first, second = (cell.outputs for cell in ran.cells[1:])
    assert [output.text for output in first] == ["2\n"]
    assert second[0].data["text/plain"] == repr(str(tmp_path)), "run where it lies"


def test_clearing_takes_away_what_running_leaves(tmp_path):
    path = notebook(tmp_path / "one.ipynb", "1 + 1")
    before = notebooks.cleared(path)
    nbformat.write(notebooks.run(path), path)
    assert "outputs" in path.read_text()
    assert path.read_text() != before
    assert notebooks.cleared(path) == before


def test_the_site_shows_what_a_notebook_prints(tmp_path):
    build = pytest.importorskip("sphinx.cmd.build", reason="needs the extra [docs], which needs Python 3.11")
    notebook(tmp_path / "index.ipynb", "print(6 * 7)")
    (tmp_path / "conf.py").write_text('extensions = ["notebooks"]\nnb_execution_mode = "off"')
    assert build.main(["--quiet", "--fail-on-warning", str(tmp_path), str(tmp_path / "site")]) == 0
    assert "42" in re.sub(r"<[^>]+>", "", (tmp_path / "site" / "index.html").read_text(encoding="utf-8"))

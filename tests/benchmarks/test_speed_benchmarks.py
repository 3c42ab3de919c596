"""The benchmarks of speed: their data are as promised, they judge right, broken engines say why, rows make tables."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ir_measures", reason="needs the extra [benchmark]")

from colbert_integrations import ColBERT, kernel
from colbert_integrations.scoring.reference import reference_maxsim

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import encoding_peers  # noqa: E402
import gpu_encoding  # noqa: E402
import gpu_maxsim  # noqa: E402
import maxsim_peers  # noqa: E402
import maxsim_worker  # noqa: E402
import observing_cost  # noqa: E402
import our_kernel  # noqa: E402
import plot_speed  # noqa: E402
import records  # noqa: E402
import rerank_peers  # noqa: E402
import running  # noqa: E402
import speed_texts  # noqa: E402
import text_worker  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """ModernBERT in small."""
    folder = tmp_path_factory.mktemp("checkpoints") / "modernbert"
    speed_texts.modernbert(folder, **SMALL)
    return folder


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    """The bundled model as a checkpoint for everybody."""
    folder = tmp_path_factory.mktemp("checkpoints") / "minilm"
    speed_texts.minilm(folder)
    return folder


def written(rows, path, **about):
    records.append(path, [{**row, "threads": 1, "cpu": "a CPU", **about} for row in rows])
    return records.newest(path, "case")


# -------------------------------------------------------------------------------------------------------- running


def worker(tmp_path, code):
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\nimport running\n{code}")
    peer = running.Peer("a peer")
    peer.start([sys.executable, str(script)], tmp_path, threads=3)
    return peer


def test_a_worker_answers_and_what_it_prints_is_no_answer(tmp_path):
    code = "import os\ndef ready():\n    print('hello')\n"
    code += (
        "    return {'threads': os.environ['OMP_NUM_THREADS']}, lambda message: print('!') or {'twice': message * 2}\n"
    )
    code += "running.serve(ready)"
    peer = worker(tmp_path, code)
    assert peer.about == {"threads": "3"}
    assert peer.ask(21) == {"twice": 42}
    peer.stop()
    assert (peer.ask(1), peer.problem) == (None, "")


@pytest.mark.parametrize("place", ["building", "answering"])
def test_a_worker_that_fails_says_why(tmp_path, place):
    failing = "(_ for _ in ()).throw(ValueError('no such model'))"
    code = f"running.serve(lambda: {failing})"
    if place == "answering":
        code = f"running.serve(lambda: ({{}}, lambda message: {failing}))"
    peer = worker(tmp_path, code)
    assert peer.ask("anything") is None
    assert peer.problem == "exit code 1: ValueError: no such model"
    assert peer.ask("again") is None


def test_turns_begin_with_another_one_each_time():
    peers = [running.Peer(name) for name in "abc"]
    assert ["".join(peer.name for peer in running.in_turn(peers, number)) for number in range(4)] == [
        "abc",
        "bca",
        "cab",
        "abc",
    ]


# --------------------------------------------------------------------------------------------------------- MaxSim


def test_lengths_are_lognormal_with_a_mean_of_150():
    lengths = maxsim_peers.document_lengths(np.random.default_rng(0), 20_000)
    assert lengths.mean() == pytest.approx(150, abs=2)
    assert (lengths.min() >= 8, lengths.max()) == (True, 300)


@pytest.fixture
def data(tmp_path):
    """Three queries, 60 documents, dimension 48, as an engine reads them, and what is right."""
    maxsim_peers.write(tmp_path, maxsim_peers.Case(3, 60, 48, 1), judged=5)
    return maxsim_worker.read(tmp_path, "timed", 1, "cpu"), maxsim_peers.Truth.of(tmp_path)


def test_truth_is_the_reference(data):
    timed, truth = data
    documents = [torch.from_numpy(matrix) for matrix in timed.matrices()[:3]]
    right = reference_maxsim(torch.from_numpy(timed.queries[:2]), documents)
    assert truth.scores.shape == (5, 60)  # the timed queries are the first of those that are judged
    assert np.abs(truth.scores[:2, :3] - right.numpy()).max() < 1e-12
    assert truth.negative.max() < 0


@pytest.mark.parametrize(
    ("name", "bound"), [("ours", 5e-6), ("ours list", 5e-6), ("ours bf16", 0.05), ("ours int8", 0.1)]
)
def test_our_engines_are_right(data, name, bound):
    timed, truth = data
    scores = maxsim_worker.ENGINES[name][0](timed)(timed.queries)
    assert timed.lengths.sum() > 8192  # so that there are several blocks
    assert np.abs(scores - truth.scores[:3]).max() < bound


def test_torch_alone_means_that_no_kernel_is_loaded(monkeypatch):
    monkeypatch.setattr(kernel, "load", lambda: "a kernel")
    for name in ("ours int8 compiled", "maxsim-cpu"):
        our_kernel.choose(name)
        assert kernel.load() == "a kernel"
    our_kernel.choose("ours int8")
    assert kernel.load() is None
    with pytest.raises(RuntimeError, match="no compiled kernel"):
        our_kernel.choose("ours int8 compiled")


def test_padding_that_wins_the_maximum_shows(tmp_path):
    maxsim_peers.write(tmp_path, maxsim_peers.Case(1, 30, 16, 1), judged=1)
    truth = maxsim_peers.Truth.of(tmp_path)
    np.save(tmp_path / "scores.npy", truth.scores)
    np.save(tmp_path / "negative.npy", np.maximum(truth.negative, 0))
    judged = truth.judge(tmp_path)
    assert (judged["error"], judged["top 10 in its 20"]) == ("0.0e+00", 1.0)
    assert float(judged["error if all negative"]) == pytest.approx(-truth.negative.min(), rel=0.05)


def test_best_ten_are_looked_for_among_twenty():
    truth = np.arange(40.0)[None]  # the best are 30..39
    found = truth.copy()
    found[0, 30:33] = -1  # three fall out of the best twenty
    found[0, 33:36] -= 12.5  # three only fall behind
    assert maxsim_peers.top_kept(found, truth) == 0.7


def test_calls_are_timed_at_least_once_after_one_that_is_not():
    calls = []
    assert len(maxsim_worker.timed(calls.append, np.zeros(1), 1e-9)["seconds"]) == 1
    assert len(calls) == 2


def test_engines_are_compared_and_become_tables_and_a_picture(tmp_path):
    case = maxsim_peers.Case(1, 1000, 16, 1)
    engines = {"ours": sys.executable, "maxsim-cpu": sys.executable, "lateweave": ""}
    ours, broken, absent = maxsim_peers.compare(case, engines, rounds=2, judged=1)
    assert float(ours["error"]) < 5e-6
    assert (ours["times ours"], ours["problem"], ours["calls"] >= 2) == (1.0, "", True)
    assert 0 < ours["best ms"] <= ours["p10 ms"] <= ours["median ms"] <= ours["p90 ms"]
    assert "No module named 'maxsim_cpu'" in broken["problem"]
    assert (broken["median ms"], absent["problem"]) == ("", "not run: no Python with it was given")
    rows = written([{**row, "dim": 128} for row in (ours, broken, absent)], tmp_path / "rows.csv")
    text = maxsim_peers.tables(rows)
    assert "1 x 1,000" in text
    assert "No module named" in text
    (axes,) = plot_speed.maxsim(rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours, packed"]


def test_cells_hold_the_time_and_the_ratio():
    assert maxsim_peers._cell({"median ms": "39.71", "times ours": "3.678"}) == "39.7 (3.68)"
    assert maxsim_peers._cell({"median ms": "4662.4", "times ours": "400.0"}) == "4662 (400.00)"
    assert maxsim_peers._cell({"median ms": "", "times ours": ""}) == ""


# ---------------------------------------------------------------------------------------------------------- texts


def test_texts_have_the_promised_lengths(minilm, small_model):
    for checkpoint in (minilm, small_model):
        with ColBERT(checkpoint, device="cpu", skiplist_words=[]) as model:
            texts = speed_texts.ragged(checkpoint, 100)
            lengths = [length for text in texts[:8] for length in model.encode_document([text]).lengths]
            assert model.encode_query(speed_texts.short_query(checkpoint)).lengths == [16]
            reader = speed_texts.reader(checkpoint)
            counted = [len(reader.encode(text, add_special_tokens=False)) + 3 for text in texts]
            assert lengths == counted[:8]
            assert statistics.fmean(counted) == pytest.approx(178, abs=3)
            assert max(counted) <= 300


def test_both_layouts_of_the_checkpoint_give_the_same_vectors(minilm):
    texts = ["the lift of a thin wing, measured.", "heat conduction in slabs"]
    with ColBERT(minilm, device="cpu") as pylate, ColBERT(minilm / speed_texts.STANFORD, device="cpu") as stanford:
        one, other = pylate.encode_document(texts), stanford.encode_document(texts)
    assert one.dim == 128
    assert one.lengths == other.lengths
    assert torch.allclose(one.values, other.values, atol=1e-6)


def test_a_checkpoint_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setitem(speed_texts.CHECKPOINTS, "minilm", lambda folder: folder.mkdir())
    with speed_texts.checkpoint("minilm", tmp_path) as made:
        assert made.exists()
        assert made.parent != tmp_path
    assert not made.exists()
    (tmp_path / "minilm").mkdir()
    with speed_texts.checkpoint("minilm", tmp_path) as found:
        assert found == tmp_path / "minilm"
    assert found.exists()


# ------------------------------------------------------------------------------------------- encoding, reranking


def test_differences_of_vectors(tmp_path):
    def folder(name, values, lengths):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "values.npy", np.array(values, np.float32))
        np.save(tmp_path / name / "lengths.npy", lengths)
        return tmp_path / name

    right = folder("right", [[1, 0], [0, 1]], [2])
    near = encoding_peers.differences(folder("near", [[1, 0], [0.6, 0.8]], [2]), right)
    assert near == {"vectors": 2, "max difference": "6.0e-01", "min cosine": 0.8}
    assert (
        encoding_peers.differences(folder("other", [[1, 0], [0, 1]], [1, 1]), right)["max difference"] == "other tokens"
    )
    assert encoding_peers.differences(folder("wide", [[1, 0, 0]], [1]), right)["max difference"] == "a head of 3"


def test_encoders_are_compared_and_become_tables_and_a_picture(small_model, tmp_path):
    case = encoding_peers.Case("modernbert", 6, 1)
    engines = {"ours float32": sys.executable, "PyLate": sys.executable}
    ours, broken = encoding_peers.compare(case, small_model, engines, rounds=2, queries=3)
    assert (ours["max difference"], ours["min cosine"], ours["compared with"]) == ("0.0e+00", 1.0, "ours float32")
    assert (ours["times ours"], ours["rounds"], ours["problem"]) == (1.0, 2, "")
    assert 0 < ours["query p50 ms"] <= ours["query p99 ms"]
    assert "No module named 'pylate'" in broken["problem"]
    rows = written([ours, broken], tmp_path / "rows.csv")
    assert "ModernBERT-base" in encoding_peers.tables(rows)
    assert "- PyLate: exit code 1" in encoding_peers.tables(rows)
    (axes,) = plot_speed.encoding(rows).axes
    assert [bar.get_width() for bar in axes.patches] == [1.0]


def test_a_gpu_runs_others_in_bfloat16_too_and_nothing_that_is_for_cpus():
    others = {"sentence-transformers": "a Python", "PyLate": "", "LlamaIndex ColbertRerank": "another"}
    options = argparse.Namespace(device="cpu", only=None)
    assert list(encoding_peers.pythons(options, encoding_peers.OURS, others)) == [*encoding_peers.OURS, *others]
    options.device = "cuda"
    found = encoding_peers.pythons(options, encoding_peers.OURS, others)
    halves = {"sentence-transformers bfloat16": "a Python", "PyLate bfloat16": ""}
    assert found == dict.fromkeys(["ours float32", "ours bfloat16"], sys.executable) | others | halves
    assert found.keys() <= text_worker.ENGINES.keys()
    options.only = ["PyLate"]
    assert list(encoding_peers.pythons(options, encoding_peers.OURS, others)) == ["ours bfloat16", "PyLate"]


def test_requests_hold_what_bm25_finds(minilm):
    (query, documents), _ = rerank_peers.requests(minilm, 2, depth=5, length=40)
    assert query.startswith("what similarity laws must be obeyed when constructing aeroelastic models")
    assert len(documents) == 5
    assert "aeroelastic" in documents[0] or "similarity" in documents[0]
    reader = speed_texts.reader(minilm)
    assert max(len(reader.encode(text, add_special_tokens=False)) for text in documents) <= 37


def test_rerankers_are_compared_by_their_best_ten():
    assert rerank_peers.top_shared([3.0, 2.0, 1.0, 0.0], [0.0, 2.0, 3.0, 1.0], k=2) == 0.5


def test_libraries_rerank_in_turn(small_model):
    work = rerank_peers.requests(small_model, 3, depth=4)
    engines = {"ours float32": sys.executable, "no such library": sys.executable}
    ours, broken = rerank_peers.compare("modernbert", small_model, engines, work, threads=1)
    assert (ours["rounds"], ours["times ours"], ours["documents"]) == (2, 1.0, 4)  # the first request does not count
    assert broken["problem"] == "exit code 1: KeyError: 'no such library'"


def test_requests_at_once_are_all_answered(small_model):
    work = rerank_peers.requests(small_model, 4, depth=3, length=20)
    with ColBERT(small_model, device="cpu") as model:
        rows = rerank_peers.concurrent(model, work, rounds=2)
    assert [row["way"] for row in rows] == ["in sequence", "threads", "asyncio", "encoded in one call"]
    assert rows[0]["times in sequence"] == 1.0
    assert all(0 < row["p50 ms"] <= row["p99 ms"] for row in rows)
    assert all(row["requests per second"] == pytest.approx(4 / row["median s"], rel=0.2) for row in rows)


# ------------------------------------------------------------------------------------------------------------ GPU


def scorer(wrong=0.0):
    def build(asked, parts):
        def score(part):
            values = part.rows.float() * (1 if part.steps is None else 1 / 127)
            similarities = asked.reshape(-1, gpu_maxsim.DIM) @ values.T
            shape = (len(asked), gpu_maxsim.QUERY_TOKENS, len(part), gpu_maxsim.TOKENS)
            return similarities.view(shape).amax(3).sum(1) + wrong

        return [lambda part=part: score(part) for part in parts]

    return build


def best_of(build):
    def top(asked, parts):
        return [lambda call=call: call().topk(2, dim=1) for call in build(asked, parts)]

    return top


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_gpu_rows_say_what_is_wrong(dtype):
    corpus, asked = gpu_maxsim.Corpus.make(7, dtype, "cpu"), gpu_maxsim.queries(2, "cpu")
    engines = [
        ("right", scorer()),
        ("wrong", scorer(0.5)),
        ("top", best_of(scorer())),
        ("wrong top", best_of(scorer(0.5))),
    ]
    engines.append(("flash-maxsim", gpu_maxsim.flash_maxsim))
    rows = gpu_maxsim.measure(engines, asked, corpus.parts(3), copy=1e9, rounds=3)
    right, wrong, top, wrong_top, absent = rows
    assert float(right["error"]) < 1e-5
    assert float(top["error"]) < 1e-5
    assert float(wrong["error"]) == float(wrong_top["error"]) == 0.5
    assert absent["problem"] == "ModuleNotFoundError: No module named 'flash_maxsim'"
    assert {row["documents"] for row in rows} == {3}
    assert set(gpu_maxsim.SHOWN) < right.keys()
    size = 3 * gpu_maxsim.TOKENS * gpu_maxsim.DIM * dtype.itemsize
    assert right["GB/s"] == pytest.approx(size / right["median us"] / 1e3, abs=0.06)


def test_a_small_case_takes_other_documents_each_time(monkeypatch):
    corpus = gpu_maxsim.Corpus.make(7, torch.float16, "cpu")
    first, second = corpus.parts(3)  # as many as there are
    assert torch.equal(first.rows, corpus.rows[: 3 * gpu_maxsim.TOKENS])
    assert torch.equal(second.rows, corpus.rows[3 * gpu_maxsim.TOKENS : 6 * gpu_maxsim.TOKENS])
    monkeypatch.setattr(gpu_maxsim, "ROTATED_BYTES", 1)
    assert len(corpus.parts(3)) == 1


def test_a_kernel_that_counts_in_32_bits_gets_no_more_than_that(monkeypatch):
    monkeypatch.setitem(gpu_maxsim.MOST, "late-interaction-kernels", 2)
    corpus, asked = gpu_maxsim.Corpus.make(3, torch.float16, "cpu"), gpu_maxsim.queries(1, "cpu")
    (row,) = gpu_maxsim.measure([("late-interaction-kernels", scorer())], asked, [corpus], 1e9, 1)
    assert row["problem"] == "ValueError: counts in 32 bits: not run above 2 documents"


@pytest.mark.parametrize("name", ["minilm", "modernbert"])
def test_gpu_encoding_rows_say_what_was_measured(name):
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    cases = gpu_encoding.run([name], tokens=400, rounds=2, device="cpu", **small)
    rows = [row for case in cases for row in case]
    full, packed, *_ = rows
    assert [row["case"] for row in rows] == [
        f"{engine}: {name}, {batch}" for batch in ("full batch", "one query") for engine in ("padded", "packed")
    ]
    assert 300 < full["tokens"] <= 400
    assert float(full["least cosine"]) > 0.99
    assert float(packed["least cosine"]) > 0.99
    assert set(gpu_encoding.SHOWN) < full.keys()
    # Of one layer: four square matrices for attention, two (BERT) or three (ModernBERT) for what follows.
    weights = 64 * 64 * 4 + 64 * 96 * (2 if name == "minilm" else 3)
    assert full["TFLOP/s"] == pytest.approx(2 * weights * full["tokens"] / full["median ms"] / 1e9, rel=0.2, abs=0.01)
    assert full["TFLOP/s with attention"] >= full["TFLOP/s"]


def test_what_is_measured_on_a_gpu_goes_on_after_an_engine_failed(monkeypatch):
    class OutOfResources(Exception):
        """As Triton's, of no builtin kind."""

    def fails(forward, sequences):
        raise OutOfResources("shared memory")

    monkeypatch.setattr(gpu_encoding.PackedForward, "__call__", fails)
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 96}
    case = next(gpu_encoding.run(["minilm"], tokens=400, rounds=2, device="cpu", **small))
    assert [(row["case"][:6], row["median ms"] == "", row["problem"]) for row in case] == [
        ("padded", False, ""),
        ("packed", True, "OutOfResources: shared memory"),
    ]
    assert len({tuple(row) for row in case}) == 1
    monkeypatch.setattr(gpu_maxsim, "take_turns", fails)
    corpus, asked = gpu_maxsim.Corpus.make(3, torch.float16, "cpu"), gpu_maxsim.queries(1, "cpu")
    (row,) = gpu_maxsim.measure([("ours", scorer())], asked, [corpus], 1e9, 1)
    assert row["problem"].startswith("TypeError")


@pytest.mark.parametrize(("length", "window"), [(1, 0), (7, 0), (9, 3), (9, 8), (9, 20), (300, 64), (5, None)])
def test_pairs_of_tokens_that_see_each_other_are_counted(length, window):
    pairs = [(i, j) for i in range(length) for j in range(length) if window is None or abs(i - j) <= window]
    assert gpu_encoding._pairs(length, window) == len(pairs)


# ------------------------------------------------------------------------------------------------------- observing


def test_the_cost_of_observing_is_compared_within_each_round():
    seconds = dict.fromkeys(observing_cost.WAYS, [0.002, 0.2, 0.002])
    row = observing_cost._row("observed()", "none", {**seconds, "before": [0.001, 0.1, 0.002]}, calls=7)
    assert (row["median us"], row["times before"], row["rounds"], row["calls"]) == (2000.0, 2.0, 3, 7)
    query, documents = observing_cost.texts()
    assert query
    assert [len(text.split()) for text in documents] == [12] * 20


def test_the_package_is_there_as_it_was(tmp_path):
    if subprocess.run(["git", "-C", str(BENCHMARKS), "cat-file", "-e", observing_cost.BEFORE], check=False).returncode:
        pytest.skip("needs the history of the repository")
    before = observing_cost.checkout(observing_cost.BEFORE, tmp_path)
    assert (before / "colbert_integrations" / "model.py").exists()
    assert not (before / "colbert_integrations" / "observing.py").exists()

"""The benchmarks of the index: their passages are as promised, they count right, their rows have the named columns."""

from __future__ import annotations

import csv
import mmap
import statistics
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("ir_measures", reason="needs the extra [benchmark]")

from colbert_integrations import TokenEmbeddings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import cranfield  # noqa: E402
import index_cranfield  # noqa: E402
import index_measuring  # noqa: E402
import index_peers  # noqa: E402
import index_scale  # noqa: E402
import index_worker  # noqa: E402
import plot_index  # noqa: E402
import records  # noqa: E402
import synthetic  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Passages are made 200 at a time, which is quicker where few are wanted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "CHUNK", 200)
        yield


@pytest.fixture(scope="module")
def source():
    """Forty abstracts, really encoded."""
    return synthetic.source(abstracts=40)


@pytest.fixture(scope="module")
def small(source):
    """The first 200 passages."""
    return next(synthetic.passages(source, 200))


def vectors(parts):
    return torch.cat([part.embeddings.values for part in parts])


# ------------------------------------------------------------------------------------------------------- passages


def test_passages_are_the_same_again_and_however_many_there_are(source, small):
    again, fewer = next(synthetic.passages(source, 500)), next(synthetic.passages(source, 150))
    assert torch.equal(again.embeddings.values, small.embeddings.values)
    assert torch.equal(fewer.embeddings.values, small.embeddings[:150].values)
    assert (fewer.ids, fewer.metadatas) == (small.ids[:150], small.metadatas[:150])


def test_another_seed_gives_other_passages(source, small):
    other = next(synthetic.passages(source, 200, seed=1))
    assert other.embeddings.lengths != small.embeddings.lengths


def test_every_chunk_is_different_and_ids_go_on(source):
    first, second = synthetic.passages(source, 300)
    assert [*first.ids, *second.ids] == [str(number) for number in range(300)]
    assert first.embeddings.lengths[:100] != second.embeddings.lengths
    assert len(second.ids) == len(second.embeddings) == len(second.texts) == len(second.metadatas) == 100


def test_lengths_are_lognormal_with_a_mean_of_150_and_at_most_300(source):
    lengths = [length for part in synthetic.passages(source, 4000) for length in part.embeddings.lengths]
    assert statistics.fmean(lengths) == pytest.approx(150, abs=4)  # three standard errors
    assert statistics.median(lengths) == pytest.approx(136, abs=5)
    assert max(lengths) == 300
    assert min(lengths) >= 8


def test_vectors_are_real_ones_with_noise(source, small):
    values = small.embeddings.values.float()
    nearest = (values @ torch.nn.functional.normalize(source.documents.values.float(), dim=1).T).max(dim=1).values
    assert torch.allclose(values.norm(dim=1), torch.ones(len(values)), atol=2e-3)
    assert nearest.mean().item() == pytest.approx(1 / (1 + 0.3**2) ** 0.5, abs=0.01)
    assert len(values.unique(dim=0)) == len(values)


def test_passage_is_runs_of_two_abstracts(source, small):
    """Without the noise: which source vector each token was."""
    counts = []
    for passage in small.embeddings[:5]:
        origin = (passage.float() @ source.documents.values.float().T).argmax(dim=1)
        counts.append(len(torch.bucketize(origin, source.documents.offsets[1:], right=True).unique()))
        assert (origin.diff() == 1).float().mean() > 0.9  # within a run one follows the other
    assert max(counts) == 2


def test_source_is_kept_and_read_again(source, tmp_path, monkeypatch):
    file = tmp_path / "source.safetensors"
    documents, queries = source.documents, source.queries
    encoded = {"documents": documents.values, "document_offsets": documents.offsets}
    encoded |= {"queries": queries.values, "query_offsets": queries.offsets}
    monkeypatch.setattr(synthetic, "_encoded", lambda abstracts: encoded)
    synthetic.source(file)
    monkeypatch.setattr(synthetic, "_encoded", None)  # not needed again
    read = synthetic.source(file)
    assert torch.equal(read.documents.values, documents.values)
    assert (read.documents.lengths, read.queries.lengths) == (documents.lengths, queries.lengths)
    assert len(read.queries) == 225


# ------------------------------------------------------------------------------------------------------ measuring


def test_recall_is_the_mean_share_that_was_found():
    found = [["a", "b", "x", "y"], ["c"], []]
    expected = [["b", "a", "c", "d"], ["c"], ["e", "f"]]
    assert index_measuring.recall(found, expected) == 0.5  # (2/4 + 1/1 + 0/2) / 3


def test_recall_needs_as_many_lists():
    with pytest.raises(ValueError, match="zip"):
        index_measuring.recall([["a"]], [["a"], ["b"]])


def test_median_and_p90_are_in_milliseconds():
    seconds = [0.010, 0.001, 0.009, 0.008, 0.007, 0.006, 0.005, 0.004, 0.003, 0.002]
    assert (index_measuring.median_ms(seconds), index_measuring.p90_ms(seconds)) == (5.5, 9.0)
    assert index_measuring.p90_ms([0.25]) == 250.0


def test_resident_memory_grows_with_what_is_written_to():
    before = index_measuring.resident_bytes()
    # Pages of the system's: those of a tensor may have been a freed one's.
    with mmap.mmap(-1, 2**26) as kept:
        for page in range(0, len(kept), mmap.PAGESIZE):
            kept[page] = 1
        assert before > 0
        assert index_measuring.resident_bytes() - before > len(kept) * 3 / 4


# ----------------------------------------------------------------------------------------------------------- rows


def test_a_size_gives_all_columns(source, tmp_path):
    plan = index_scale.Plan(200, queries=3, threads=1, folder=tmp_path)
    row, exact = index_scale.measure(plan, source)
    row |= index_scale.measure_codes(plan, source, exact)
    assert {
        *index_scale.BATCHES,
        *index_scale.SAVE,
        *index_scale.CHANGE,
        *index_scale.CENTROIDS,
        *index_scale.CODES,
    } < row.keys()
    assert {*index_scale.SHOWN} - {"case"} < row.keys()
    assert all(isinstance(value, (int, float)) for value in row.values())
    assert row["vector bytes per document"] == round(row["tokens"] * 256 / 200)
    stages = {row[f"{stage} recall@10"] for stage in ("centroids", "codes")}
    assert stages == {1.0}  # there are fewer passages than candidates
    assert list(tmp_path.iterdir()) == []


def test_exact_search_of_a_size_finds_what_a_brute_force_does(source, small):
    plan = index_scale.Plan(200, queries=3, threads=1, parts=())
    row, exact = index_scale.measure(plan, source)
    queries, documents = source.queries[:3], small.embeddings
    scores = [[(query.double() @ text.double().T).amax(1).sum().item() for text in documents] for query in queries]
    best = [sorted(range(200), key=lambda place, of=of: -of[place])[:10] for of in scores]
    assert exact == [[str(place) for place in places] for places in best]
    columns = [*index_scale.BATCHES, *index_scale.SAVE, *index_scale.CENTROIDS]
    assert all(row[column] == "" for column in columns)


def test_sizes_are_measured_in_processes_of_their_own_and_written_down(source, tmp_path, monkeypatch):
    calls = []

    def alone(work, *arguments):
        calls.append(work.__name__)
        return work(*arguments)

    monkeypatch.setattr(index_scale, "_alone", alone)
    monkeypatch.setattr(synthetic, "source", lambda kept: source)
    plans = [index_scale.Plan(size, queries=2, threads=1, parts=("centroids",)) for size in (20, 40)]
    index_scale.run(plans, tmp_path / "scale.csv")
    assert calls == ["_measured", "_measured_codes"] * 2
    assert [row["case"] for row in records.newest(tmp_path / "scale.csv", "case")] == ["20 on cpu", "40 on cpu"]
    assert index_scale.table(tmp_path / "scale.csv").count("\n") == 3
    rows = records.newest(tmp_path / "scale.csv", "case")
    latency, memory = plot_index.figure(rows).axes
    assert [line.get_label() for line in latency.lines][:1] == ["exact"]
    assert list(latency.lines[0].get_xdata()) == [20, 40]
    assert list(latency.lines[0].get_ydata()) == [float(row["exact ms"]) for row in rows]
    assert "codes" not in str([line.get_label() for line in latency.lines])  # they were not measured
    assert all(max(line.get_ydata()) > 0 for line in memory.lines)  # what is zero has no place on such an axis


def test_work_runs_alone_in_another_process():
    assert index_scale._alone(divmod, 7, 2) == (3, 1)


def test_settings_of_the_index_give_rows(tmp_path):
    everything = cranfield.load()
    wanted = {judgement.doc_id for judgement in everything.judgements if judgement.query_id in {"1", "2"}}
    documents = {name: everything.documents[name][:300] for name in sorted(wanted, key=int)[:40]}
    queries = {name: everything.queries[name] for name in ("1", "2")}
    collection = cranfield.Collection(documents, queries, everything.judgements)
    chosen = {"float32", "nbits=2", 'search="centroids", candidates=20'}
    settings = [setting for setting in index_cranfield.SETTINGS if setting.name in chosen]
    settings.append(index_cranfield.Setting("one vector or two", pool_factor=200))
    index_cranfield.run(tmp_path / "rows.csv", settings, collection)
    with (tmp_path / "rows.csv").open(newline="") as file:
        exact, two_bits, candidates, coarse = csv.DictReader(file)
    assert set(index_cranfield.COLUMNS) < set(exact)
    assert float(exact["recall@10"]) == 1.0 > float(coarse["recall@10"])
    size = float(exact["bytes per document"])
    assert float(two_bits["bytes per document"]) == pytest.approx(size / 16, rel=0.05)
    assert size / 2 < float(candidates["bytes per document"]) < size * 0.6, "float16, centroids and lists"
    assert float(coarse["bytes per document"]) <= 2 * 384 * 2
    assert index_cranfield.table(tmp_path / "rows.csv").startswith("| setting | nDCG@10 |")


def test_settings_are_those_of_the_issue():
    names = [setting.name for setting in index_cranfield.SETTINGS]
    assert len(names) == len(set(names)) == 16
    assert index_cranfield.SETTINGS[0].store == {"dtype": "float32"}  # what the others are compared with


# ---------------------------------------------------------------------------------------------------------- peers


def test_brute_force_is_right():
    middling = torch.full((4, 2), 0.4)
    documents = TokenEmbeddings.from_list([torch.eye(2), -torch.eye(2), torch.eye(2)[:1], middling])
    queries = TokenEmbeddings.from_list([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0]])])
    data = index_worker.Data(
        documents.values.half().numpy(), documents.offsets.tolist(), queries.values.half().numpy(), [0, 2, 3]
    )
    # first query: 1 + 1, 0 + 0, 1 + 0, 0.4 + 0.4; second: max(-1, 0), max(1, 0), -1, -0.4
    assert index_peers.brute_force(data, k=4) == [["0", "2", "3", "1"], ["1", "0", "3", "2"]]


def test_engines_are_searched_in_turn_and_a_broken_one_says_why(source):
    engines = dict.fromkeys(["ours exact", "lancedb float32"], sys.executable)
    exact, broken = index_peers.compare(engines, source, 200, queries=3, threads=1)
    assert {*index_peers.SHOWN} <= exact.keys()
    assert exact["recall@10"] == exact["times ours exact"] == 1.0
    assert (exact["problem"], broken["median ms"]) == ("", "")
    assert "No module named 'lancedb'" in broken["problem"]


def test_engine_that_would_fill_the_memory_is_not_started(source, monkeypatch):
    monkeypatch.setattr(index_peers, "MOST_DOCUMENTS", {"pylate rank.rerank": 10})
    (row,) = index_peers.compare({"pylate rank.rerank": sys.executable}, source, 20, queries=1)
    assert row["problem"] == "not run above 10 documents"
    assert row["median ms"] == ""

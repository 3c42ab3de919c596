"""The benchmark of encoding on a server compares the same vectors and counts the bytes that were sent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra [benchmark]")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import records
import vllm_encoding

import checkpoints


def test_a_row_for_each_way(double, folder, tmp_path: Path) -> None:
    documents = [*checkpoints.SENTENCES, "fox"]
    rows = vllm_encoding.measure(folder("stanford"), double.url, documents, "a fox", rounds=2)
    assert [row["case"] for row in rows][:2] == ["here", "vLLM, 1 at once, float16"]
    assert {(row["documents"], row["rounds"]) for row in rows} == {(4, 2)}
    errors = {row["case"]: float(row["max difference"]) for row in rows}
    assert errors["here"] == 0
    assert errors["vLLM, 8 at once, float32"] < 1e-5 < errors["vLLM, 8 at once, float16"] < 1e-3
    down = {row["case"]: row["bytes down per document"] for row in rows}
    # 32 bytes a vector in half precision, 4/3 of it as base64, and what JSON adds.
    tokens = sum(len(ids) for path, body in double.asked[-1:] for ids in body["input"]) / 4
    assert 4 / 3 * 64 * tokens < down["vLLM, 8 at once, float32"] < 4 / 3 * 64 * tokens + 100
    assert down["vLLM, 8 at once, float16"] < 0.7 * down["vLLM, 8 at once, float32"]
    records.append(tmp_path / "rows.csv", rows)
    shown = vllm_encoding.table(records.newest(tmp_path / "rows.csv", "case"))
    assert shown.count("\n") == 6
    assert "| here |" in shown

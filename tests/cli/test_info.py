"""info: the load report, and how the model would be run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cli.running import Run
from colbert_integrations import ColBERT
from colbert_integrations.scoring import engine_for


def test_it_begins_with_the_load_report(run: Run, model: ColBERT) -> None:
    done = run("info", model.settings.model)
    assert done.out.startswith(f"{model.spec}\n\nAs it runs here\n")
    rows = dict(line.split(maxsplit=1) for line in done.out.rpartition("here\n")[2].splitlines())
    assert rows == {
        "device": "cpu",
        "dtype": "float32",
        "dim": "16",
        "parameters": f"{model.num_parameters:,}",
        "maxsim": engine_for(model.device, 16),
        "fingerprint": model.fingerprint.digest,
    }


def test_the_model_may_be_named_as_elsewhere(run: Run, model: ColBERT) -> None:
    assert run("info", "--model", model.settings.model).out == run("info", model.settings.model).out


def test_json_has_the_spec_and_where_it_is_from(run: Run, model: ColBERT) -> None:
    data = run("info", model.settings.model, "--json", "--dtype", "bfloat16", "--set", "document_length=30").data
    spec = json.loads(json.dumps(asdict(model.spec)))
    del spec["sources"], spec["notes"]
    assert data["spec"] == {**spec, "document_length": 30}
    assert data["sources"]["document_length"] == "argument"
    assert data["dtype"] == "bfloat16"
    assert data["parameters"] == model.num_parameters
    assert list(data) == [
        *("model", "spec", "sources", "notes"),
        *("device", "dtype", "dim", "parameters", "maxsim", "fingerprint"),
    ]


def test_json_has_what_arguments_and_machine_decide(run_as_given: Run, model: ColBERT) -> None:
    asked = ColBERT(model.settings.model, truncate_dim=8)
    data = run_as_given("info", model.settings.model, "--json", "--set", "truncate_dim=8").data
    assert (data["dim"], data["device"], data["notes"]) == (8, str(asked.device), list(asked.spec.notes))
    assert len(data["notes"]) == 1


def test_a_checkpoint_that_is_not_there_is_one_line(run: Run, tmp_path: Path) -> None:
    done = run("info", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("colbert-integrations: ")
    assert done.err.count("\n") == 1
    assert "nothing" in done.err


def test_debug_shows_where_an_error_was_raised(run: Run, tmp_path: Path) -> None:
    done = run("info", tmp_path / "nothing", "--debug")
    assert done.code == 2
    assert done.err.startswith("Traceback")
    assert "CheckpointNotFoundError" in done.err


def test_a_device_that_is_not_there_is_one_line(run: Run, checkpoint: Callable[[str], Path]) -> None:
    done = run("info", checkpoint("stanford"), "--device", "cuda:77")
    assert done.code == 2
    assert done.err.startswith("colbert-integrations: device='cuda:77' can't be used on this machine")
    assert done.err.count("\n") == 1

"""Encoding on one GPU beside what its matrix units can do; has not been run on a GPU yet.

1. How fast the device multiplies: bfloat16 matrices of 8,192 by 8,192, as many operations a second as it gets.
2. The shapes of MiniLM-L6 and ModernBERT-base with random weights: full batches of ragged documents, and one query of
   32 tokens. ``packed`` is ours, ``padded`` transformers' own forward pass on the same batch.

Times are those of CUDA events around each forward pass, the engines in turn; ``share of matmul`` compares the
operations of the linear layers for real tokens with the first figure, ``share with attention`` those of both products
of attention as well, of tokens that see each other. Vectors are compared with the padded pass in float32. Where there
is no GPU nothing is measured. ``--print`` shows the newest results instead, ``--profile`` the kernels of a full batch.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
from gpu_maxsim import Runner, take_turns, told
from torch import nn
from transformers import BertConfig, BertModel, ModernBertConfig, ModernBertModel

from colbert_integrations.encoder import TokenSequence, TorchForward
from colbert_integrations.encoder.packed.forward import PackedForward, can_pack

RESULTS = records.HERE / "results" / "gpu_encoding.csv"
BATCH_TOKENS, LONGEST, MEDIAN_TOKENS, VOCABULARY = 32_768, 300, 166, 30_000
COLUMNS = ["case", "tokens", "median ms", "p10 ms", "p90 ms", "wall ms", "tokens per second"]
COLUMNS += ["TFLOP/s", "share of matmul", "TFLOP/s with attention", "share with attention", "least cosine", "problem"]
SHOWN = [
    "case",
    "median ms",
    "p90 ms",
    "tokens per second",
    "TFLOP/s",
    "share of matmul",
    "share with attention",
    "least cosine",
    "problem",
]


def minilm(**changed: Any) -> Any:
    """Six layers of 384."""
    shape = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    return BertModel(BertConfig(**{"vocab_size": VOCABULARY, **shape, **changed}))


def modernbert(**changed: Any) -> Any:
    """22 layers of 768."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1)
    return ModernBertModel(ModernBertConfig(**{"vocab_size": VOCABULARY, "pad_token_id": 0, **special, **changed}))


MODELS = {"minilm": minilm, "modernbert": modernbert}


def documents(tokens: int) -> list[TokenSequence]:
    """Ragged documents of random tokens, longest first as the encoder hands them over, at most so many tokens."""
    made = np.random.default_rng(0)
    lengths = list[int]()
    while (length := int(np.clip(made.lognormal(np.log(MEDIAN_TOKENS), 0.5), 8, LONGEST))) + sum(lengths) <= tokens:
        lengths.append(length)
    return [_sequence(length, made) for length in sorted(lengths, reverse=True)]


def query() -> list[TokenSequence]:
    """One query of 32 tokens."""
    return [_sequence(32, np.random.default_rng(1))]


def _sequence(length: int, made: np.random.Generator) -> TokenSequence:
    return TokenSequence(made.integers(2, VOCABULARY, length).tolist(), length, [*range(length)], [None] * length)


def operations(model: Any, sequences: Sequence[TokenSequence]) -> int:
    """Operations of the linear layers' products for the real tokens; attention is not counted."""
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith("pooler")
    ]
    return 2 * sum(layer.weight.numel() for layer in layers) * sum(len(sequence.ids) for sequence in sequences)


def attention_operations(model: Any, sequences: Sequence[TokenSequence]) -> int:
    """Operations of both products of attention, of pairs of tokens within a window where a layer has one."""
    config = model.config
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = [None if kind == "full_attention" else config.local_attention // 2 for kind in kinds]
    pairs = sum(_pairs(len(sequence.ids), window) for window in windows for sequence in sequences)
    return 4 * pairs * config.hidden_size


def _pairs(length: int, window: int | None) -> int:
    """Pairs of tokens that are no further apart than a window."""
    beyond = 0 if window is None else max(0, length - 1 - window)
    return length**2 - beyond * (beyond + 1)


def matmul_rate(device: str, size: int = 8192, rounds: int = 20) -> float:
    """Operations a second of a product of bfloat16 matrices, median."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    multiplying = Runner("matmul", [lambda: left @ right])
    multiplying.calls[0]()
    take_turns([multiplying], rounds, device)
    return 2 * size**3 / statistics.median(multiplying.inside)


def measure(
    model: Any, case: str, sequences: list[TokenSequence], device: str, rate: float, rounds: int
) -> list[records.Row]:
    """A row for each engine on a batch.

    Args:
        model: A backbone, float32 on the CPU.
        case: Its name and that of the batch.
        sequences: The batch.
        device: Where to.
        rate: Operations a second of a product alone.
        rounds: How many calls count.

    Returns:
        The rows; with a problem and without times where an engine can't do it.
    """
    exact = TorchForward(copy.deepcopy(model).to(device), nn.Identity(), torch.device(device))
    right = nn.functional.normalize(exact(sequences).double(), dim=1)
    half = copy.deepcopy(model).to(device, torch.bfloat16)
    padded = TorchForward(half, nn.Identity(), torch.device(device))
    engines: dict[str, Any] = {"padded": padded}
    if can_pack(half, None):
        engines["packed"] = PackedForward(half, nn.Identity(), torch.bfloat16)
    runners = [Runner(name, [lambda forward=forward: forward(sequences)]) for name, forward in engines.items()]
    cosines = {runner.name: _least_cosine(runner, right) for runner in runners}
    take_turns(runners, rounds, device)
    work = operations(half, sequences), attention_operations(half, sequences)
    rows = [_row(case, runner, cosines[runner.name], work, sequences, rate) for runner in runners if runner.inside]
    problems = {runner.name: runner.problem for runner in runners if not runner.inside}
    if "packed" not in engines:
        problems["packed"] = "torch can't do it here"
    empty = dict.fromkeys(COLUMNS, "")
    return rows + [{**empty, "case": f"{name}: {case}", "problem": why} for name, why in problems.items()]


def _least_cosine(runner: Runner, right: torch.Tensor) -> float:
    try:
        vectors = nn.functional.normalize(runner.calls[0]().double(), dim=1)  # type: ignore[attr-defined]
        return float((vectors * right).sum(1).min())
    except Exception as problem:  # of Triton or CUDA: the others go on
        runner.problem = told(problem)
        return 0.0


def _row(
    case: str,
    runner: Runner,
    cosine: float,
    work: tuple[int, int],
    sequences: Sequence[TokenSequence],
    rate: float,
) -> records.Row:
    """A row; ``work`` is the operations of linear layers and of attention."""
    middle, low, high = (float(place) for place in np.quantile(runner.inside, [0.5, 0.1, 0.9]))
    tokens = sum(len(sequence.ids) for sequence in sequences)
    times = [round(1e3 * seconds, 3) for seconds in (middle, low, high, statistics.median(runner.wall))]
    rates = [(round(done / middle / 1e12, 2), round(done / middle / rate, 3)) for done in (work[0], sum(work))]
    figures = [tokens, *times, round(tokens / middle), *rates[0], *rates[1], f"{cosine:.5f}", ""]
    return dict(zip(COLUMNS, [f"{runner.name}: {case}", *figures], strict=True))


def run(models: Sequence[str], tokens: int, rounds: int, device: str, **changed: Any) -> Iterator[list[records.Row]]:
    """Measure everything.

    Args:
        models: Names of shapes.
        tokens: Of a full batch.
        rounds: How many calls count.
        device: Where to.
        **changed: Of the models' configurations.

    Yields:
        A row for each engine, case by case.
    """
    rate = matmul_rate(device, size=8192 if device == "cuda" else 256)
    for name in models:
        torch.manual_seed(0)
        model = MODELS[name](**changed).eval().requires_grad_(False)
        for kind, sequences in (("full batch", documents(tokens)), ("one query", query())):
            rows = measure(model, f"{name}, {kind}", sequences, device, rate, rounds)
            yield [{**row, "matmul TFLOP/s": round(rate / 1e12, 2)} for row in rows]


def profile(models: Sequence[str], tokens: int) -> None:
    """Print which kernels of a packed full batch take how long."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for name in models:
        half = MODELS[name]().eval().requires_grad_(False).to("cuda", torch.bfloat16)
        forward, batch = PackedForward(half, nn.Identity(), torch.bfloat16), documents(tokens)
        forward(batch)
        with torch.profiler.profile(activities=activities) as profiled:
            forward(batch)
            torch.cuda.synchronize()
        print(name, profiled.key_averages().table(sort_by="cuda_time_total", row_limit=25), sep="\n")


def main() -> None:
    """Measure and write down what came out, or print what did before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print the newest results as a Markdown table")
    parser.add_argument("--profile", action="store_true", help="print the kernels of a full batch, and write nothing")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", type=int, default=BATCH_TOKENS, help="of a full batch")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--results", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    if not options.print and not torch.cuda.is_available():
        parser.error("there is no CUDA device here")
    if options.profile:
        profile(options.models, options.tokens)
        return
    if not options.print:
        about = records.circumstances("torch", "transformers")
        first = {"date": about["date"], "commit": about["commit"]}
        for rows in run(options.models, options.tokens, options.rounds, "cuda"):
            records.append(options.results, [{**first, **row, **about} for row in rows])
    print(records.markdown(records.newest(options.results, "case"), SHOWN))


if __name__ == "__main__":
    main()

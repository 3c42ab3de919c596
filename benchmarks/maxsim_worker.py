"""One way to compute MaxSim in a process of its own: answers "do it again" with how long it took.

``maxsim_peers.py`` starts it as ``python maxsim_worker.py ENGINE FOLDER THREADS DEVICE``. The folder holds the vectors
as ``.npy`` files; ``scores.npy`` of each engine go into a folder of its name. An engine gets its documents in the form
that it likes best, outside of the time that counts; what it has to do with queries is inside. Nothing but numpy is
imported that the engine does not bring.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import our_kernel
import running

Score = Callable[[np.ndarray], np.ndarray]
"""From ``(queries, tokens, dim)`` float32 to ``(queries, documents)``."""


@dataclass(frozen=True)
class Data:
    """Token vectors.

    Attributes:
        queries: ``(queries, tokens, dim)`` float32.
        values: Of all documents, one after another, ``(tokens, dim)`` float32.
        lengths: Tokens of each document, ``(documents,)`` int64.
        threads: As many as the engine may use.
        device: Where to.
    """

    queries: np.ndarray
    values: np.ndarray
    lengths: np.ndarray
    threads: int
    device: str = "cpu"

    def matrices(self) -> list[np.ndarray]:
        """Each document by itself, ``(tokens, dim)``, with memory of its own."""
        return [part.copy() for part in np.split(self.values, np.cumsum(self.lengths)[:-1])]


def read(folder: Path, name: str, threads: int, device: str) -> Data:
    """Open what ``maxsim_peers.write`` wrote."""
    queries, values, lengths = (np.load(folder / f"{name}_{part}.npy") for part in ("queries", "values", "lengths"))
    return Data(queries, values, lengths, threads, device)


# ----------------------------------------------------------------------------------------------------------- ours


def _packed(data: Data) -> Any:
    import torch

    from colbert_integrations import TokenEmbeddings

    offsets = np.concatenate([[0], np.cumsum(data.lengths)])
    return TokenEmbeddings(torch.from_numpy(data.values), torch.from_numpy(offsets)).to(data.device)


def _stack(queries: np.ndarray, device: str = "cpu") -> Any:
    import torch

    from colbert_integrations import TokenEmbeddings

    count, tokens, dim = queries.shape
    values = torch.from_numpy(queries.reshape(-1, dim))
    return TokenEmbeddings(values, torch.arange(count + 1) * tokens).to(device)


def ours(data: Data) -> Score:
    """``maxsim`` of packed documents."""
    from colbert_integrations import maxsim

    documents = _packed(data)
    return lambda queries: maxsim(_stack(queries, data.device), documents).cpu().numpy()


def ours_half(data: Data) -> Score:
    """``maxsim`` of packed documents in float16."""
    import torch

    from colbert_integrations import maxsim

    documents = _packed(data).to(dtype=torch.float16)
    return lambda queries: maxsim(_stack(queries, data.device), documents).cpu().numpy()


def ours_list(data: Data) -> Score:
    """``maxsim`` of a list of tensors."""
    import torch

    from colbert_integrations import maxsim

    documents = [torch.from_numpy(matrix) for matrix in data.matrices()]
    return lambda queries: maxsim(list(torch.from_numpy(queries)), documents).numpy()


def ours_bf16(data: Data) -> Score:
    """The scorer of the stores, on rows that are kept in bfloat16."""
    import torch

    rows, lengths = torch.from_numpy(data.values).bfloat16(), torch.from_numpy(data.lengths)
    return _blocks(data, rows.dtype, lambda stacked, some, part: stacked.score(rows[some], lengths[part]))


def ours_int8(data: Data) -> Score:
    """The scorer of the stores, on rows that are kept in int8, with a step a document."""
    import torch

    from colbert_integrations.index.quantization import encode_int8

    lengths = torch.from_numpy(data.lengths)
    codes, steps = encode_int8(torch.from_numpy(data.values), lengths)

    def score(stacked: Any, some: slice, part: slice) -> Any:
        return stacked.score_int8(codes[some], lengths[part], steps[part])

    return _blocks(data, codes.dtype, score)


def _blocks(data: Data, dtype: Any, score: Callable[[Any, slice, slice], Any]) -> Score:
    """Score block by block, as large as the scorer likes them, as the stores do."""
    import torch

    from colbert_integrations.scoring import stack_queries

    bounds = np.concatenate([[0], np.cumsum(data.lengths)])

    def cuts(most: int) -> list[int]:
        places = [0]
        while places[-1] < len(data.lengths):
            fits = int(np.searchsorted(bounds, bounds[places[-1]] + most, side="right")) - 1
            places.append(max(fits, places[-1] + 1))
        return places

    known: dict[int, list[int]] = {}

    def all_scores(queries: np.ndarray) -> np.ndarray:
        stacked = stack_queries(_stack(queries))
        most = stacked.block_rows(dtype)
        places = known.get(most) or known.setdefault(most, cuts(most))
        parts = zip(places, places[1:], strict=False)
        found = [score(stacked, slice(bounds[a], bounds[b]), slice(a, b)) for a, b in parts]
        return torch.cat(found, 1).numpy()

    return all_scores


# ---------------------------------------------------------------------------------------------------------- peers


def gemm(data: Data) -> Score:
    """No MaxSim: the matrix product alone, in float32, in blocks that stay in the caches."""
    import torch

    # Sends float32 products to oneDNN; process-wide, which is why the package itself does not. With AMX it would round
    # to bfloat16, and so not be the same work; such CPUs are Intel's, where torch's own way, by MKL, is as fast.
    if not torch.cpu._is_amx_tile_supported():
        torch.set_float32_matmul_precision("medium")
    rows = torch.from_numpy(data.values)

    def product(queries: np.ndarray) -> np.ndarray:
        matrix = torch.from_numpy(queries.reshape(-1, queries.shape[-1])).T.contiguous()  # (dim, query_tokens)
        step = 4096 if matrix.shape[1] <= 128 else 1024
        out = torch.empty(step, matrix.shape[1])
        for block in rows.split(step):
            torch.mm(block, matrix, out=out[: len(block)])
        return np.zeros((len(queries), 0))

    return product


def sentence_transformers(data: Data) -> Score:
    """sentence-transformers' ``maxsim`` of a list of tensors."""
    import torch
    from sentence_transformers.util import maxsim

    documents = [torch.from_numpy(matrix).to(data.device) for matrix in data.matrices()]
    return lambda queries: maxsim(list(torch.from_numpy(queries).to(data.device)), documents).cpu().numpy()


def pylate(data: Data) -> Score:
    """PyLate's ``rank.rerank`` of a list of tensors, query by query as it does."""
    import torch
    from pylate import rank

    documents = [torch.from_numpy(matrix) for matrix in data.matrices()]
    ids = list(range(len(documents)))

    def scores(queries: np.ndarray) -> np.ndarray:
        count = len(queries)
        found = rank.rerank([ids] * count, list(torch.from_numpy(queries)), [documents] * count)
        table = np.empty((count, len(documents)), np.float32)
        for row, results in zip(table, found, strict=True):
            row[[result["id"] for result in results]] = [result["score"] for result in results]
        return table

    return scores


def maxsim_cpu(data: Data) -> Score:
    """maxsim-cpu, of a list of arrays."""
    import maxsim_cpu

    documents = data.matrices()
    return lambda queries: np.stack([maxsim_cpu.maxsim_scores_variable(query, documents) for query in queries])


def lateweave(data: Data) -> Score:
    """``maxsim_scores_packed`` of lateweave."""
    import lateweave

    def scores(queries: np.ndarray) -> np.ndarray:
        score = lateweave.maxsim_scores_packed
        return np.stack([score(query, data.values, data.lengths, threads=data.threads) for query in queries])

    return scores


# -------------------------------------------------------------------------------------- on a GPU; run on none so far


def late_interaction_kernels(data: Data) -> Score:
    """late-interaction-kernels on packed float16 documents."""
    import torch
    from late_interaction_kernels import maxsim_varlen

    values, offsets = _half_packed(data)
    longest = int(data.lengths.max())

    def scores(queries: np.ndarray) -> np.ndarray:
        some = torch.from_numpy(queries).to(data.device, torch.float16)
        starts = torch.arange(len(some) + 1, device=data.device, dtype=torch.int32) * some.shape[1]
        flat = some.reshape(-1, some.shape[-1])
        return maxsim_varlen(flat, values, starts, offsets, some.shape[1], longest).cpu().numpy()

    return scores


def flash_maxsim(data: Data) -> Score:
    """flash-maxsim on packed float16 documents."""
    import torch
    from flash_maxsim import flash_maxsim_packed

    values, offsets = _half_packed(data)

    def scores(queries: np.ndarray) -> np.ndarray:
        some = torch.from_numpy(queries).to(data.device, torch.float16)
        return torch.stack([flash_maxsim_packed(query, values, offsets) for query in some]).cpu().numpy()

    return scores


def _half_packed(data: Data) -> tuple[Any, Any]:
    import torch

    offsets = np.concatenate([[0], np.cumsum(data.lengths)])
    return (
        torch.from_numpy(data.values).to(data.device, torch.float16),
        torch.from_numpy(offsets).to(data.device, torch.int32),
    )


ENGINES: dict[str, tuple[Callable[[Data], Score], str]] = {
    "ours": (ours, "colbert-integrations"),
    "ours fp16": (ours_half, "colbert-integrations"),
    "ours bf16": (ours_bf16, "colbert-integrations"),
    "ours int8": (ours_int8, "colbert-integrations"),
    "ours list": (ours_list, "colbert-integrations"),
    "GEMM alone": (gemm, "torch"),
    "maxsim-cpu": (maxsim_cpu, "maxsim-cpu"),
    "lateweave": (lateweave, "lateweave"),
    "sentence-transformers maxsim": (sentence_transformers, "sentence-transformers"),
    "PyLate rank.rerank": (pylate, "pylate"),
    "late-interaction-kernels": (late_interaction_kernels, "late-interaction-kernels"),
    "flash-maxsim": (flash_maxsim, "flash-maxsim"),
}


# ------------------------------------------------------------------------------------------------------- measuring


def ready(name: str, folder: Path, threads: int, device: str) -> tuple[running.Reply, Callable[[Any], running.Reply]]:
    """Build an engine, let it score what its answers are judged by, and see what memory the first call takes."""
    build, package = ENGINES[name.removesuffix(our_kernel.COMPILED)]
    if package in ("colbert-integrations", "torch", "sentence-transformers", "pylate"):
        _set_torch(threads)
    our_kernel.choose(name)
    own = folder / name.replace(" ", "-")
    own.mkdir()
    negative = read(folder, "negative", threads, device)
    np.save(own / "negative.npy", build(negative)(negative.queries))  # also loads what is loaded on first use
    data = read(folder, "timed", threads, device)
    score = build(data)
    before = _memory("VmRSS", reset=True)
    score(data.queries)
    extra = max(0.0, _memory("VmHWM") - before)
    np.save(own / "scores.npy", _judged(score, np.load(folder / "judged_queries.npy"), len(data.queries)))
    return {"version": version(package), "extra MB": round(extra, 1)}, lambda budget: timed(score, data.queries, budget)


def _set_torch(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _judged(score: Score, queries: np.ndarray, together: int) -> np.ndarray:
    return np.concatenate([score(queries[place : place + together]) for place in range(0, len(queries), together)])


def timed(score: Score, queries: np.ndarray, budget: float) -> running.Reply:
    """Score once to wake caches and threads, then again and again, at least once and for the budget, in seconds."""
    score(queries)
    seconds: list[float] = []
    while sum(seconds) < budget:
        started = time.perf_counter()
        score(queries)
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds}


def _memory(field: str, *, reset: bool = False) -> float:
    """A line of Linux's /proc/self/status in MB; 0 elsewhere. Resetting makes the peak start from here."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = (line.split() for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(next(lines)[1]) / 1024


def main(arguments: Sequence[str]) -> None:
    """Serve one engine."""
    name, folder, threads, device = arguments
    running.serve(lambda: ready(name, Path(folder), int(threads), device))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(sys.argv[1:])

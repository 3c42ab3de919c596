"""MaxSim on a CUDA device: against the CPU at real sizes, beyond 2**31 elements, without waiting, and as a graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch

from colbert_integrations import TokenEmbeddings, maxsim
from colbert_integrations.scoring import stack_queries
from colbert_integrations.scoring import triton as triton_scoring
from colbert_integrations.scoring.triton import TritonQueries

pytestmark = pytest.mark.gpu

NoWaiting = Callable[[], AbstractContextManager[None]]

EIGHT_BITS = [torch.int8, torch.float8_e4m3fn]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, *EIGHT_BITS]


def unit(sizes: list[int], dim: int, seed: int) -> TokenEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    values = torch.nn.functional.normalize(torch.randn(sum(sizes), dim, generator=generator), dim=-1)
    return TokenEmbeddings(values, torch.tensor([0, *sizes]).cumsum(0))


def bound(queries: TokenEmbeddings) -> float:
    """What summing in float32 can err: dim products of unit vectors, then one sum over the query's tokens."""
    longest = max(queries.lengths)
    return torch.finfo(torch.float32).eps * (queries.dim + longest) * longest


def lengths(documents: int, longest: int) -> list[int]:
    return torch.randint(0, longest, (documents,), generator=torch.Generator().manual_seed(documents)).tolist()


def stored(documents: TokenEmbeddings, dtype: torch.dtype) -> TokenEmbeddings:
    """In a dtype; as int8, whole numbers."""
    return (
        TokenEmbeddings((documents.values * 127).round(), documents.offsets).to(dtype=dtype)
        if dtype == torch.int8
        else documents.to(dtype=dtype)
    )


def expected_scores(queries: TokenEmbeddings, documents: TokenEmbeddings) -> torch.Tensor:
    """What the CPU says of the very numbers that the GPU multiplies."""
    if documents.dtype == torch.int8:
        steps = torch.ones(len(documents))
        return stack_queries(queries).score_int8(documents.values, documents.offsets.diff(), steps)
    factor = torch.float16 if documents.dtype in EIGHT_BITS else documents.dtype
    return maxsim(queries.to(dtype=factor).to(dtype=torch.float32), documents.to(dtype=torch.float32))


def needs_support(dim: int, dtype: torch.dtype) -> None:
    if not triton_scoring.supports(dim, dtype, torch.device("cuda")):
        pytest.skip(f"needs triton and a CUDA device that takes {dtype}: compute capability 8.0, or 8.9 for float8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [48, 96, 128])
@pytest.mark.parametrize("sizes", [[32], [32] * 32, [5, 300, 17]])
def test_the_kernel_scores_like_the_cpu(sizes: list[int], dim: int, dtype: torch.dtype) -> None:
    needs_support(dim, dtype)
    queries, documents = unit(sizes, dim, 0), stored(unit(lengths(500, 300), dim, 1), dtype)
    expected = expected_scores(queries, documents)
    there = documents.to("cuda")
    actual = TritonQueries(queries.to("cuda"), dtype).score(there.values, there.offsets).cpu()
    scale = 127 if dtype == torch.int8 else 1
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound(queries) * scale)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dim", [20, 128])
def test_maxsim_scores_like_the_cpu(dim: int, dtype: torch.dtype) -> None:
    queries, documents = (unit(sizes, dim, 2).to(dtype=dtype) for sizes in ([32, 1, 0], [200, 1, 0, 77]))
    actual = maxsim(queries.to("cuda"), documents.to("cuda"))
    assert actual.device.type == "cuda"
    torch.testing.assert_close(actual.cpu(), maxsim(queries, documents), rtol=0, atol=bound(queries))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_addresses_go_beyond_2_to_the_31(dtype: torch.dtype) -> None:
    needs_support(128, dtype)
    size, length = 80_000_000, 200  # rows: 10.2e9 elements, five times 2**31
    if torch.cuda.mem_get_info()[0] < 1.1 * size * 128 * dtype.itemsize:
        pytest.skip("needs a CUDA device with 23 GB of free memory")
    rows = torch.empty(size, 128, dtype=dtype, device="cuda")
    for block in rows.split(2**23):
        block.copy_(torch.randint(-9, 10, block.shape, dtype=torch.int8, device="cuda"))
    offsets = torch.arange(0, size + 1, length, device="cuda")
    whole = torch.randint(-9, 10, (32, 128), device="cuda").float()
    whole[:, 0] = 127  # so that one step of int8 is worth 1, and every sum is a whole number
    scores = TritonQueries(TokenEmbeddings.from_list([whole]), dtype).score(rows, offsets)
    for start in range(0, len(offsets) - 1, 50_000):
        some = rows[start * length : (start + 50) * length].view(-1, length, 128).float()
        assert torch.equal(scores[0, start : start + 50], (some @ whole.T).amax(1).sum(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_scoring_never_waits_for_the_device(dtype: torch.dtype, no_waiting: NoWaiting) -> None:
    needs_support(128, dtype)
    documents = stored(unit(lengths(300, 100), 128, 1), dtype).to("cuda")
    queries, steps = TritonQueries(unit([32, 7], 128, 0).to("cuda"), dtype), torch.ones(300, device="cuda")
    warm = queries.top_k(documents.values, documents.offsets, 10, steps)
    with no_waiting():
        again = queries.top_k(documents.values, documents.offsets, 10, steps)
    assert torch.equal(warm[0], again[0])


def test_a_new_shape_compiles_nothing_new() -> None:
    needs_support(128, torch.float16)
    from colbert_integrations.scoring.triton_kernels import maxsim_kernel

    queries, compiled = TritonQueries(unit([32], 128, 0).to("cuda"), torch.float16), []
    for count in (1, 16, 17, 1000, 20_000):
        documents = unit(lengths(count, 50), 128, count).to("cuda", torch.float16)
        queries.score(documents.values, documents.offsets)
        queries.score(documents.values, documents.offsets[1:])  # not aligned to 16 bytes
        compiled.append(len(maxsim_kernel.device_caches[torch.cuda.current_device()][0]))
    assert len(set(compiled)) == 1


def test_a_captured_call_reads_its_tensors_anew() -> None:
    needs_support(128, torch.float16)
    documents = unit(lengths(1000, 360), 128, 1).to("cuda", torch.float16)
    queries = TritonQueries(unit([32], 128, 0).to("cuda"), torch.float16)
    captured = queries.capture(documents.values, documents.offsets, 10)
    queries.replace(unit([32], 128, 5).to("cuda"))
    documents.values.copy_(documents.values.flip(0))
    scores, positions = (best.clone() for best in captured.replay())
    expected = queries.top_k(documents.values, documents.offsets, 10)
    assert torch.equal(scores, expected[0])
    assert torch.equal(positions, expected[1])

"""What a CPU multiplies fast in torch."""

from __future__ import annotations

import pytest
import torch

from colbert_integrations.devices.cpu import multiplies


@pytest.mark.parametrize(("capability", "fast"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_int8_is_fast_with_avx512_only(capability: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert multiplies(torch.int8) == fast
    assert multiplies(torch.float32)


@pytest.mark.parametrize("fast", [True, False])
def test_of_bfloat16_torch_is_asked(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast, raising=False)
    assert multiplies(torch.bfloat16) == fast


def test_a_torch_that_can_t_say_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not multiplies(torch.bfloat16)
    assert multiplies(torch.float32)

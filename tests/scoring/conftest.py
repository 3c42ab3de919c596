"""Which implementation of MaxSim a test of scoring runs on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from colbert_integrations import kernel as compiled

ON_TORCH = "torch"


def _implementations() -> list[str]:
    kernel = compiled.load()
    return [ON_TORCH, *(["compiled"] if kernel is None else kernel.instruction_sets)]


# Of a module, not of a test: hypothesis runs a test many times with one value of the fixture.
@pytest.fixture(scope="module", params=_implementations())
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """Scoring by torch alone, and by the compiled kernel in each instruction set that this CPU runs."""
    kernel = compiled.load()
    if kernel is None and request.param != ON_TORCH:
        pytest.skip("needs the compiled kernel: pip install ./kernel")
    chosen = None if kernel is None or request.param == ON_TORCH else kernel.with_instruction_set(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "load", lambda: chosen)
        yield request.param

"""Which rows of ours use the compiled kernel, and how a process is kept from using it."""

from __future__ import annotations

COMPILED = " compiled"
"""What the names of engines end in that use it; the others of ours are torch alone."""


def is_there() -> bool:
    """Whether the kernel is installed."""
    from colbert_integrations import kernel

    return kernel.load() is not None


def choose(engine: str) -> None:
    """Use the kernel in this process, or don't, as the name of an engine says; nothing for others than ours.

    Args:
        engine: Its name.

    Raises:
        RuntimeError: If it is to be used and is not installed.
    """
    if not engine.startswith("ours"):
        return
    from colbert_integrations import kernel

    if not engine.endswith(COMPILED):
        kernel.load = lambda: None
    elif not is_there():
        raise RuntimeError("there is no compiled kernel here")

"""Figures of a call on its LlamaIndex span, and on the OpenTelemetry span that an instrumentor made of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # re-exported without __all__
from llama_index.core.instrumentation.span import active_span_id

from ..observing import observed

__all__ = ["figures_on_span"]

_dispatcher = get_dispatcher(__name__)


@contextmanager
def figures_on_span(about: Callable[[], Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Put the figures of what happens in the body on the span that is open, also where it fails.

    There is no event for them: instrumentors warn of each event whose class they do not know.

    Args:
        about: What else is to be said of the call; asked at the end.

    Yields:
        The figures, once the body is done; empty before.
    """
    figures: dict[str, Any] = {}
    try:
        with observed() as observation:
            yield figures
    finally:
        figures.update({**about(), **observation.stats.as_metadata()})
        span_id = active_span_id.get()
        if span_id is not None:
            _tag(span_id, figures)
            _set_attributes(span_id, figures)


def _tag(span_id: str, figures: Mapping[str, Any]) -> None:
    dispatcher: Any = _dispatcher
    while dispatcher is not None:
        for handler in dispatcher.span_handlers:
            span = handler.open_spans.get(span_id)
            if span is not None:
                span.tags.update(figures)
        dispatcher = dispatcher.parent if dispatcher.propagate else None


def _set_attributes(span_id: str, figures: Mapping[str, Any]) -> None:
    # Whoever traces by OpenTelemetry has imported it.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return
    span = trace.get_current_span()
    # An instrumentor names its spans by the framework's, and any other span is somebody else's.
    if getattr(span, "name", None) == span_id.partition("-")[0]:
        span.set_attributes(figures)

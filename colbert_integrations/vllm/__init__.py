"""ColBERT on vLLM servers: the forward pass of the encoder, or the servers' own scores.

``forward.py`` is the forward pass, ``scorer.py`` the scores, of texts as ``spelling.py`` writes them. ``wire.py`` knows
what requests and answers look like, ``probe.py`` whether a server is that of the checkpoint. ``servers.py`` chooses
among servers and asks again when one fails, over the connections of ``link.py``, as ``settings.py`` says.
"""

from __future__ import annotations

from ..errors import MissingExtraError

try:
    import httpx  # noqa: F401  # asked for once, before the modules that need it
except ImportError as error:
    raise MissingExtraError("colbert_integrations.vllm", "vllm") from error

from .forward import VLLMForward
from .scorer import VLLMScorer

__all__ = ["VLLMForward", "VLLMScorer"]

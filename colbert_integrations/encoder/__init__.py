"""Texts to TokenEmbeddings: tokenise without state, batch by a token budget, run the backbone, keep what counts.

``load.py`` makes an encoder of a checkpoint. ``tokens.py`` makes token sequences from texts, ``backbone.py`` loads the
transformer and refuses a wrong one, ``projection.py`` the layers behind it, ``forward.py`` runs both on token ids; the
room ``packed`` does so faster for BERT, its kin and ModernBERT. ``encoder.py`` joins it all, ``batching.py`` cuts work
into batches and windows, and ``merging.py`` lets calls at the same time share batches. ``remote.py`` is where servers
step in.
"""

from __future__ import annotations

from .backbone import LoadOptions
from .encoder import EncodeOptions, Encoder
from .forward import Forward, TorchForward
from .load import build_tokenizer, load_encoder, read_tokenizer
from .remote import Connection, RemoteForward
from .tokens import Side, TextTokens, Tokenizer, TokenSequence

__all__ = [
    "Connection",
    "EncodeOptions",
    "Encoder",
    "Forward",
    "LoadOptions",
    "RemoteForward",
    "Side",
    "TextTokens",
    "TokenSequence",
    "Tokenizer",
    "TorchForward",
    "build_tokenizer",
    "load_encoder",
    "read_tokenizer",
]

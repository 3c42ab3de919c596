"""Which checkpoints are served, and which can be encoded on which server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import checkpoints

KEY = "a-key"
ARCHITECTURES = {"bert": None, "modernbert": "ColBERTModernBertModel"}
# Layout -> the server that has its weights, and how its files are written. vLLM's attention needs heads of 32.
LAYOUTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "stanford": ("bert", checkpoints.stanford),
    "stanford_attend": ("bert", partial(checkpoints.stanford, attend_to_mask_tokens=True)),
    "stanford_nopunct": ("bert", partial(checkpoints.stanford, mask_punctuation=False)),
    "pylate": ("modernbert", checkpoints.pylate),
    "pylate_noexp": ("modernbert", partial(checkpoints.pylate, do_query_expansion=False)),
    "pylate_attend": ("modernbert", partial(checkpoints.pylate, attend_to_expansion_tokens=True)),
    "pylate_noskip": ("modernbert", partial(checkpoints.pylate, skiplist_words=[])),
    "pylate_prompts": (
        "modernbert",
        partial(checkpoints.pylate, do_query_expansion=False, prompts={"query": "ask: ", "document": "text: "}),
    ),
    "native_raw": ("modernbert", partial(checkpoints.native, normalize=False)),
}
# Their queries have expansion that the other tokens do not see.
UNATTENDED = ["stanford", "stanford_nopunct", "pylate", "pylate_noskip"]
SERVED = {"bert": "stanford", "modernbert": "pylate"}

"""Why a document scored as it did: for each query token the document token it matched, as data, text, HTML and plot.

``explanation.py`` holds the data, ``explainer.py`` makes it of a model, ``passage.py`` finds the best passage in it.
``terminal.py``, ``html.py`` and ``heat_map.py`` draw it, with what ``wording.py`` says and ``characters.py`` cuts. Only
``explainer.py`` needs a model's libraries, so it is not loaded here: an explanation that was stored can be shown
without them.
"""

from __future__ import annotations

from .explanation import Explanation, Token, TokenMatch, TokenShare, TokenSimilarities
from .passage import Passage

__all__ = ["Explanation", "Passage", "Token", "TokenMatch", "TokenShare", "TokenSimilarities"]

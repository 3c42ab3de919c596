"""The command line: ``colbert-integrations``, or ``python -m colbert_integrations``.

``parser.py`` says what can be asked, ``main.py`` runs it and turns errors into exit codes. A command has a file of its
own: ``rerank.py``, ``explain.py``, ``info.py``, ``index.py``, ``search.py``. Shared: ``reading.py`` and ``corpora.py``
read texts, ``opening.py`` opens models and stores, ``output.py`` writes, ``listing.py`` makes lines of results, and
``failures.py`` counts what went wrong. Torch is imported by commands only, never for ``--help``.
"""

from __future__ import annotations

from .main import main

__all__ = ["main"]

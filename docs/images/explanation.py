"""Makes the page that explanation.png is a picture of, with the bundled model.

Run it as ``python docs/images/explanation.py page.html`` in an environment with ``colbert-integrations[offline]``, then
take the picture in a browser: ``chromium --headless --window-size=720,412 --force-device-scale-factor=2
--hide-scrollbars --screenshot=docs/images/explanation.png page.html``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from colbert_integrations import ColBERT

QUERY = "what lifts a plane"
DOCUMENT = (
    "Birds and engineers met the same problem and found the same answer. "
    "Wings push air downwards, and that lifts the aircraft; a propeller or a jet pulls it forward. "
    "On the ground nothing of this is felt, and so it took long to see."
)


def main(page: str) -> None:
    """Write the page, with the table of matches unfolded."""
    shown = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu").explain(QUERY, DOCUMENT).to_html()
    shown = shown.replace("<details><summary>All", "<details open><summary>All")
    style = "<style>body{margin:12px;background:#fff;color:#1a1a1a}</style>"
    Path(page).write_text(f'<!doctype html><meta charset="utf-8">{style}{shown}', encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

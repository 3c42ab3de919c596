"""Draws maxsim.png: the token similarities behind one score, from the bundled model. Needs matplotlib.

Run it as ``python docs/images/maxsim.py`` in an environment with ``colbert-integrations[offline]`` and matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from colbert_integrations import ColBERT, maxsim

QUERY = "why can a plane stay in the air"
DOCUMENT = "wings push air downwards, and that lifts the aircraft"


def main() -> None:
    """Draw query tokens by document tokens, each row's maximum framed."""
    model = ColBERT("bundled/all-MiniLM-L6-v2", device="cpu")
    query, document = model.encode_query(QUERY), model.encode_document(DOCUMENT)
    similarities = query[0] @ document[0].T  # (query tokens, document tokens)
    rows, columns = (
        _words(model, text, side) for text, side in ((QUERY, "query"), (DOCUMENT, "document"))
    )
    figure, axes = plt.subplots(figsize=(8, 4.4), dpi=160)
    axes.imshow(similarities, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=35, ha="right")
    axes.set_yticks(range(len(rows)), rows)
    for row, column in enumerate(similarities.argmax(1).tolist()):
        frame = plt.Rectangle(
            (column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="#d9480f", linewidth=2
        )
        axes.add_patch(frame)
        value = similarities[row, column].item()
        axes.text(
            column,
            row,
            f"{value:.2f}",
            ha="center",
            va="center",
            color="white" if value > 0.55 else "black",
        )
    axes.set_xlabel("document")
    axes.set_ylabel("query")
    axes.set_title(
        f"score = sum of each query token's best match = {maxsim(query, document).item():.2f}",
        fontsize=11,
    )
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"))


def _words(model: ColBERT, text: str, side: str) -> list[str]:
    encoder = model._ready()
    tokens = encoder.tokenizer.tokens([text], side)[0]
    sequence = encoder.sequences(tokens, side)[0]
    return [encoder.tokenizer.text_of(sequence.ids[position]) for position in sequence.kept]


if __name__ == "__main__":
    main()

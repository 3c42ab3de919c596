"""Why is this passage first: ColBERT ranks passages of Python's language reference and says what it went by.

Prints the best one with its matches, in colour by rich's print, and writes a page that shows the first three.
"""

from pathlib import Path

from corpus import passages
from rich import print

from colbert_integrations import ColBERT

QUESTION = "why does my default argument keep its value between calls"
PAGE = Path("explanations.html")

texts = [passage.text for passage in passages() if "default" in passage.text]
model = ColBERT("bundled/all-MiniLM-L6-v2")
ranked = model.rank(QUESTION, texts, top_n=3, explain=True)

print(ranked[0].explanation)

shown = "<br>".join(entry.explanation.to_html() for entry in ranked)  # a notebook shows it by itself
PAGE.write_text(f'<!doctype html><meta charset="utf-8"><title>{QUESTION}</title>{shown}', encoding="utf-8")
print(f"The first three of {len(texts)} passages are explained in {PAGE}")

best = ranked[0].explanation
assert "Default parameter values are evaluated" in best.document
assert ("default", "Default") in {words[:2] for words in best.words()}, "the words that matched are named"
assert best.passage.text in best.document

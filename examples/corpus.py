"""Real text that every Python has: its language reference, cut into passages."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

_LENGTH = 700  # of a passage in characters, about 150 tokens; a longer paragraph stays whole
_UNDERLINED = re.compile(r"^(\S.*)\n([*=~-])\2{2,}$", re.MULTILINE)


@dataclass(frozen=True)
class Passage:
    """Neighbouring paragraphs of one section."""

    section: str
    text: str


def passages() -> list[Passage]:
    """All passages of the reference; pydoc's topics share sections, so each is taken once."""
    return list(dict.fromkeys(passage for topic in topics.values() for passage in _passages(topic)))


def write_files(folder: Path, about: Collection[str]) -> Path:
    """Write a Markdown file for each section with one of these words in its heading; gives the folder, made if new."""
    folder.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[str]] = {}
    for passage in passages():
        if any(word in passage.section for word in about):
            texts.setdefault(passage.section, []).append(passage.text)
    for section, its_texts in texts.items():
        name = "-".join(re.findall(r"\w+", section.lower()))
        (folder / f"{name}.md").write_text("\n\n".join([f"# {section}", *its_texts]) + "\n", encoding="utf-8")
    return folder


def _passages(topic: str) -> list[Passage]:
    _, *parts = _UNDERLINED.split(topic)  # heading, underline's character, body; and so on
    return [Passage(heading, text) for heading, body in zip(parts[::3], parts[2::3]) for text in _texts(body)]


def _texts(body: str) -> list[str]:
    """Paragraphs joined as long as they stay short; what is defined after an indented one starts anew."""
    texts: list[str] = []
    before = ""
    for paragraph in filter(str.strip, body.split("\n\n")):
        text, starts = " ".join(paragraph.split()), _indented(before) and not _indented(paragraph)
        if texts and not starts and len(texts[-1]) + len(text) < _LENGTH:
            texts[-1] += " " + text
        else:
            texts.append(text)
        before = paragraph
    return texts


def _indented(paragraph: str) -> bool:
    return paragraph.lstrip("\n").startswith(" ")

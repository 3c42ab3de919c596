"""HTML: well-formed, ours alone, and whatever a text says, it stays text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings

from colbert_integrations import ColBERT, Explanation
from colbert_integrations.explain import Token, TokenMatch
from made import explanations, won_by
from texts import SENTENCES, TEXTS

# Ours, and of these elements the attributes: nothing that loads, runs or links.
ELEMENTS = {"div", "style", "p", "strong", "mark", "span", "details", "summary", "bdi"}
ELEMENTS |= {"table", "thead", "tbody", "tr", "th", "td"}
ATTRIBUTES = {"class", "title", "tabindex", "style", "dir", "role", "aria-label", "scope"}
NAMES = re.compile(r"(ce-(text|query|title|note|chip|passage|cut|number|bar|[qd]\d*)|colbert-explanation)( (?=ce)|$)")
STYLES = re.compile(r"--ce-a:\d\.\d\d|width:\d\.\d\dem")
ATTACKS = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</mark></p></div></style><h1>out</h1>",
    "<!-- a comment --> <![CDATA[ data ]]> <?php echo ?>",
    "&lt;b&gt; &amp; &#60; &NotAnEntity; &",
    "javascript:alert(1) {color:red} */ </style >",
    "a\u202eb\u2066c \x00 \x1b[31m \r\n",
]


class Page(HTMLParser):
    """Reads a page as a browser does; an element that is not closed, or another's end, is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []  # of each element, in the order of their ends
        self._parts: list[list[str]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        self._parts.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.texts.append("".join(self._parts.pop()))

    def handle_data(self, data: str) -> None:
        assert self.open, data
        for part in self._parts:
            part.append(data)

    def refuse(self, data: str) -> None:
        raise AssertionError(data)

    handle_comment = handle_decl = handle_pi = unknown_decl = refuse


def check(explanation: Explanation) -> Page:
    page = Page(explanation._repr_html_())
    for tag, attributes in page.elements:
        assert tag in ELEMENTS
        assert attributes.keys() <= ATTRIBUTES
        assert NAMES.sub("", attributes.get("class", "")) == ""
        assert STYLES.fullmatch(attributes.get("style", "--ce-a:0.00"))
    assert page.elements[0][0] == "div"
    assert [tag for tag, _ in page.elements].count("div") == 1
    assert explanation.query in page.texts
    assert explanation.document in page.texts
    style = next(text for text in page.texts if ".colbert-explanation{" in text)
    assert not re.search(r"url|@import|expression|<", style)
    return page


@settings(deadline=None, max_examples=150)
@given(explanations())
def test_any_text_stays_text(made: Explanation) -> None:
    check(made)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_stays_text(bundled: ColBERT, byte_level: ColBERT, attack: str) -> None:
    for model in (bundled, byte_level):
        for query, document in ((attack, "a dog"), ("a dog", attack), (attack, attack * 40)):
            [explanation] = model.explain_pairs([(query, document)])
            check(explanation)


def test_a_carriage_return_is_written_out() -> None:
    html = won_by("a\rplane", ("plane", 0.5))._repr_html_()  # a browser would read a bare one as a line feed
    assert "\r" not in html
    assert "a\rplane" in Page(html).texts


def test_real_texts_stay_text(model: ColBERT) -> None:
    for explanation in model.explain_pairs([("東京 naïve fox", text) for text in [*SENTENCES, *TEXTS[::20]]]):
        check(explanation)


def marks(page: Page) -> list[dict[str, str]]:
    return [attributes for tag, attributes in page.elements if tag == "mark"]


def test_the_marked_characters_are_those_that_matched() -> None:
    html = won_by("a plane and a bird", ("plane", 0.5), ("bird", 0.25))._repr_html_()
    marked = re.findall(r'<mark class="ce-d\d"[^>]*>(.*?)</mark>', html)
    assert marked == ["plane", "bird"]


def test_parts_of_a_character_share_a_mark(byte_level: ColBERT) -> None:
    html = byte_level.explain("👨‍👩‍👧‍👦", "go 👨‍👩‍👧‍👦 go")._repr_html_()
    assert {mark for mark in re.findall(r"<mark[^>]*>(.*?)</mark>", html) if not mark.isascii()} == {"👨‍👩‍👧‍👦"}


def test_a_mark_tells_what_matched_and_links_both_sides() -> None:
    page = check(won_by("a plane and a bird", ("plane", 0.5), ("bird", 0.25)))
    query, *document = marks(page)
    assert query["title"] == "matches “plane” 0.50, “bird” 0.25"
    assert query["class"] == "ce-q0 ce-q1"
    assert [mark["title"] for mark in document] == ["0.50 of the score: “q” 0.50", "0.25 of the score: “q” 0.25"]
    assert [mark["class"] for mark in document] == ["ce-d0", "ce-d1"]
    assert all(mark["tabindex"] == "0" for mark in marks(page))
    for pointed, outlined in (("q0", "d0"), ("d1", "q1")):
        assert f".colbert-explanation:has(.ce-{pointed}:is(:hover,:focus)) .ce-{outlined}" in "".join(page.texts)


@pytest.mark.parametrize("token", [Token("dog", 2, 5), Token("[SEP]")])
def test_a_token_that_won_several_times_tells_all_of_it(token: Token) -> None:
    matches = (TokenMatch(Token("a", 0, 1), token, 0.5, 0, 1), TokenMatch(Token("b", 2, 3), token, 0.25, 1, 1))
    page = check(Explanation("a b", "a dog", 0.75, matches))
    titles = [attributes["title"] for _, attributes in page.elements if "ce-d0 ce-d1" in attributes.get("class", "")]
    assert titles == ["0.75 of the score: “a” 0.50, “b” 0.25"]
    assert ("[SEP]: 0.75" in page.texts) == (token.span is None)


def test_the_greater_share_is_the_stronger_colour() -> None:
    page = check(won_by("a plane and a bird or a cat", ("plane", 0.5), ("bird", 0.25), ("cat", -0.25)))
    opacities = [float(mark["style"].removeprefix("--ce-a:")) for mark in marks(page)[1:]]
    assert opacities[0] > opacities[1] > opacities[2] > 0
    assert max(opacities) == 0.6  # the page's own letters stay readable


def test_the_table_has_what_each_line_brings_and_all_that_it_met() -> None:
    met = [Token("plane", 2, 7), Token("bird", 14, 18), Token("bird", 14, 18)]
    asked = [Token("[MASK]"), Token("[MASK]"), Token("q", 0, 1)]
    shares = zip(asked, met, (0.5, 0.25, 0.375), strict=True)
    matches = tuple(TokenMatch(one, other, share, place, place) for place, (one, other, share) in enumerate(shares))
    html = Explanation("q", "a plane and a bird", 1.125, matches)._repr_html_()
    table = re.sub(r"</t[hd]>", "|", html[html.index("<tbody>") : html.index("</tbody>")])
    lines = [re.sub(r"<[^>]*>", "", line) for line in table.split("</tr>")]
    assert lines == ["[MASK] × 2|0.75||plane, bird|", "q|0.38||bird|", ""]
    longer, shorter = map(float, re.findall(r"width:([\d.]+)em", table))
    assert longer > shorter > 0


def test_a_long_document_is_folded_below_its_best_passage() -> None:
    page = check(won_by("Nothing here. " * 60 + "A plane. " + "Nothing here. " * 60, ("plane", 0.5)))
    assert [tag for tag, _ in page.elements].count("details") == 2  # and the table
    assert "A plane." in page.texts
    short = check(won_by("A plane.", ("plane", 0.5)))
    assert [tag for tag, _ in short.elements].count("details") == 1


@pytest.mark.parametrize("times", [1, 60])
def test_the_best_passage_is_underlined_in_the_whole_document(times: int) -> None:
    explanation = won_by("Nothing here. " * times + "A plane flies. " + "Nothing here. " * times, ("plane", 0.5))
    underlined = re.findall(r'<span class="ce-passage">(.*?)</span>', explanation._repr_html_())
    assert re.sub(r"<[^>]*>", "", "".join(underlined)) == "A plane flies."


def test_what_was_not_read_is_pale(bundled: ColBERT) -> None:
    explanation = Explanation("q", "one two three", 0.5, won_by("one two", ("one", 0.5)).matches, document_cut=7)
    assert '<span class="ce-cut"> three</span>' in explanation._repr_html_()
    assert "read up to character 7 only" in explanation._repr_html_()
    asked = Explanation("one two three", "q", 0.5, won_by("q", ("q", 0.5)).matches, query_cut=7)
    assert '<span class="ce-cut"> three</span>' in asked._repr_html_()


def test_tokens_without_a_place_are_named(tiny: ColBERT) -> None:
    html = tiny.explain("a fox", "a dog")._repr_html_()
    assert re.search(r"\[MASK\] × 11: \d", html)
    assert "[CLS]: " in html


def test_a_text_is_laid_out_in_its_own_direction() -> None:
    page = check(won_by("القاهرة هي عاصمة مصر", ("عاصمة", 0.5)))
    texts = [attributes for tag, attributes in page.elements if "ce-text" in attributes.get("class", "")]
    assert len(texts) == 2
    assert all(attributes["dir"] == "auto" for attributes in texts)


def test_it_is_small(bundled: ColBERT) -> None:
    assert len(bundled.explain("why can a plane stay in the air", "Wings lift the plane.")._repr_html_()) < 10_000

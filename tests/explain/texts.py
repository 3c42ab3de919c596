"""Real text in several scripts: Python's own manual, Cranfield's abstracts, and sentences written for these tests."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from pydoc_data.topics import topics

CRANFIELD = Path(__file__).parents[2] / "benchmarks" / "data" / "cranfield" / "corpus.jsonl.gz"

SENTENCES = [
    # Latin, with marks, composed and apart
    "Der Flügel lenkt die Luft nach unten; dafür hebt sie das Flugzeug - so einfach ist's.",
    "L’été dernier, à Besançon, nous avons mangé des œufs brouillés et bu du café.",
    "Cafe\u0301, nai\u0308ve and re\u0301sume\u0301 are spelt with marks of their own here.",
    "Žluťoučký kůň dnes pomalu přešel přes most v Brně.",
    "Hôm qua tôi đã đọc một cuốn sách về máy bay ở Đà Nẵng.",
    "İstanbul'da ışıklar söndü; IĞDIR'da hâlâ yanıyor.",
    "STRASSE heißt Straße, und der ﬁne Unterschied liegt in der ﬂotten Ligatur…",
    # Greek, Cyrillic, Armenian, Georgian
    "Ο Οδυσσέας γύρισε στην Ιθάκη ύστερα από είκοσι χρόνια.",
    "Вчера вечером ёжик нашёл под ёлкой большое яблоко и унёс его домой.",
    "Київ - столиця України, а її найбільша річка - Дніпро.",
    "Երևանը Հայաստանի մայրաքաղաքն է։",
    "თბილისი საქართველოს დედაქალაქია და მტკვარზე მდებარეობს.",
    # Right to left
    "القاهرة هي عاصمة مصر، وتقع على ضفاف نهر النيل.",
    "كَتَبَ الوَلَدُ الدَّرْسَ فِي الدَّفْتَرِ.",
    "نمی‌دانم کتاب‌ها را کجا گذاشته‌ام؛ شاید روی میز باشند.",
    "لاہور پاکستان کا ایک بڑا اور پرانا شہر ہے۔",
    "ירושלים היא עיר עתיקה, ובה שווקים וגנים רבים.",
    # India and its neighbours: vowel signs and conjuncts
    "दिल्ली भारत की राजधानी है और यमुना नदी के किनारे बसी है।",
    "क्षत्रिय राजा ने हिन्दी में पत्र लिखा।",
    "ঢাকা বাংলাদেশের রাজধানী এবং একটি ব্যস্ত শহর।",
    "சென்னை தமிழ்நாட்டின் தலைநகரம் ஆகும்.",
    "కృష్ణా నది విజయవాడ మీదుగా ప్రవహిస్తుంది.",
    "කොළඹ ශ්‍රී ලංකාවේ විශාලතම නගරයයි.",
    # Without spaces, and Korean
    "กรุงเทพเป็นเมืองหลวงของประเทศไทย น้ำท่วมทุกปี",
    "ရန်ကုန်မြို့သည် မြန်မာနိုင်ငံ၏ အကြီးဆုံးမြို့ ဖြစ်သည်။",
    "東京は日本の首都です。京都はむかしの首都でした。",
    "ｶﾀｶﾅ と ひらがな が ㍍ と ㌔ に出会った。",
    "北京是中国的首都，上海是最大的城市。",
    "飛機為什麼能飛？因為機翼把空氣往下推！",
    "서울은 대한민국의 수도이고 한강이 흐른다.",
    "한국어는 자모로도 쓴다.",
    # Others, and characters of several
    "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት።",
    "ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ is written with letters of its own.",
    "The family 👨‍👩‍👧‍👦 went to 🇫🇷 and 🇯🇵, and said 👍🏽 to the 🏳️‍🌈 flag.",
    "❤️‍🔥 keycaps 1️⃣2️⃣3️⃣ and a woman at work 👩🏿‍💻!",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 beyond the first plane: 𝒳 ∈ ℝ², 𐍈 and 😀.",
    "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, α ∧ ¬β = ¬(¬α ∨ β), 5 × 3 ≠ 16 ½ ¼",
    "tabs\tand\r\nline ends\n\n\nand   many    spaces\u00a0\u2003\u3000of all kinds",
    "if (a < b && c > d) { print(\"x='$1'\"); }  // <b>bold</b> &amp; more",
    "https://example.org/a_long/path?with=parameters&and=more#fragment foo_bar.baz[0]",
    "zero\u200bwidth\u2060joiners\ufeffand a soft\u00adhyphen",
]


def manual(count: int) -> list[str]:
    """Paragraphs of the reference that every Python carries."""
    paragraphs = [" ".join(part.split()) for text in topics.values() for part in text.split("\n\n")]
    kept = [part for part in dict.fromkeys(paragraphs) if 80 < len(part) < 400]
    return kept[:: max(1, len(kept) // count)][:count]


def abstracts(count: int) -> list[str]:
    """Beginnings of Cranfield's abstracts."""
    with gzip.open(CRANFIELD, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"][:300] for line in lines]
    kept = [text for text in texts if text]
    return kept[:: len(kept) // count][:count]


TEXTS = [*SENTENCES, *manual(140), *abstracts(60)]

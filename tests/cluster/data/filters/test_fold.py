"""Typography counts for nothing: what reads the same is judged the same and is a near copy, in every script."""

from __future__ import annotations

import random
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.data.filters.dedup import MinHash
from cluster.data.filters.fold import fold, measured
from cluster.data.filters.measures import Counted, is_short
from cluster.data.filters.registry import Thresholds, filters, judge
from cluster.data.filters.words import ALNUM, HIGH, SOLID, WORD, Words

RNG = random.Random(0)
NAMES = ["river", "winter", "garden", "stone", "letter", "summer", "window", "bread", "music", "mountain", "paper"]
STOP = ["the", "of", "and", "that", "with", "have"]


def sentence() -> str:
    words = [RNG.choice(STOP if i % 3 == 0 else NAMES) + str(RNG.randrange(40)) * (i % 4 == 1) for i in range(11)]
    return f'He said: "{" ".join(words)} - it\'s {RNG.choice(NAMES)}..." and went ({RNG.choice(NAMES)}).'


PLAIN = "\n".join(sentence() for _ in range(14))
RULES = filters(["gopher", "fineweb"], Thresholds())

TWINS = {
    **{f"space {ord(c):04x}": PLAIN.replace(" ", c) for c in "\xa0\u2002\u2003\u2009\u202f\u205f\u3000\u1680"},
    "quotes": PLAIN.replace(' "', " “").replace('"', "”").replace("'", "’"),
    "guillemets": PLAIN.replace(' "', " « ").replace('"', " »"),
    **{f"dash {ord(c):04x}": PLAIN.replace("-", c) for c in "‐‑‒–—―−－"},
    "ellipsis": PLAIN.replace("...", "…"),
    "soft hyphens": PLAIN.replace("in", "i\xadn"),
    "joiners": PLAIN.replace("er", "e\u200br\u2060"),
    "a mark of order": "\ufeff" + PLAIN,
    "ligatures": PLAIN.replace("fi", "ﬁ").replace("st", "ﬆ"),
    "full width": PLAIN.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}),
}


@pytest.mark.parametrize("twin", TWINS.values(), ids=TWINS)
def test_a_text_and_its_typographic_twin_are_near_copies(twin: str) -> None:
    minhash = MinHash()
    assert twin != PLAIN or "ﬁ" in twin
    first, second = minhash.band_keys(minhash.signatures([PLAIN, twin]))
    assert (first == second).all()


@pytest.mark.parametrize("name", [n for n in TWINS if n not in ("guillemets", "full width")])
def test_a_good_text_stays_good_in_other_typography(name: str) -> None:
    (plain, twin) = judge([PLAIN, TWINS[name]], RULES)
    assert (plain.reason, twin.reason) == (None, None)
    assert twin.text == TWINS[name], "the document stays as it is"
    c4 = judge([PLAIN.replace('..."', '."'), TWINS[name].replace('..."', '."')], filters(["c4"], Thresholds()))
    assert [v.reason for v in c4] == [None, None]


@pytest.mark.parametrize("sign", ["—", "•", "“", "→", "€", "😀", "\ue000", "。"])
def test_signs_are_no_letters(sign: str) -> None:
    words = Words([fold(f"{sign} a{sign}{sign} {sign}{sign}")], SOLID)
    assert (words.count(ALNUM) > 0).tolist() == [False, True, False]
    [verdict] = judge([f"{PLAIN} {f'{sign} ' * 120}"], filters(["gopher_quality"], Thresholds()))
    assert verdict.reason == "gopher_quality.min_words_with_letter"


def test_all_that_no_one_has_assigned_reads_as_one_sign() -> None:
    """Beyond the ideographs there are only private, unassigned and, in plane 14, invisible ones."""
    assert set(fold("".join(map(chr, (*range(0xE000, 0xF900), *range(0x40000, 0x110000)))))) == {"~"}
    assert fold("".join(map(chr, range(0xE0000, 0xF0000)))) == ""


@settings(max_examples=300)
@given(st.text())
def test_a_fold_has_a_high_byte_for_letters_alone_and_is_its_own_fold(text: str) -> None:
    folded = fold(text)
    assert fold(folded) == folded
    letters = [c for c in folded if ord(c) > 127]
    assert all(unicodedata.category(c)[0] in "LMN" or 0x20000 <= ord(c) < 0x40000 for c in letters)
    assert len(folded) <= len(text) and len(measured(text)) == len(folded)
    if text.isascii():
        assert folded == text == measured(text)
    assert len(folded.split(" ")) >= len([c for c in text if unicodedata.category(c) == "Zs"])
    assert HIGH[Words([folded], SOLID).buffer].sum() == sum(len(c.encode()) for c in folded if ord(c) > 127)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("春天来了，公园里的花都开了。孩子们在草地上跑来跑去，老人们坐在长椅上晒太阳。", 14, 24),
        ("日本語の文章には単語の間に空白がありません。それでも読むことができます。", 12, 24),
        ("ประเทศไทยตั้งอยู่ในเอเชียตะวันออกเฉียงใต้ มีกรุงเทพมหานครเป็นเมืองหลวง", 12, 22),
        ("한국어는 단어 사이에 공백이 있습니다.", 5, 5),
        ("Three words here", 3, 3),
        ("我用 Python 写了 3 个程序", 6, 8),
        ("日本語abc", 3, 3),
        ("", 0, 0),
    ],
)
def test_words_of_scripts_without_spaces_are_about_as_many_as_there_are(text: str, least: int, most: int) -> None:
    assert least <= Counted([text]).total()[0] <= most


CHINESE = [
    "春天来了，公园里的花都开了。",
    "孩子们在草地上跑来跑去，老人们坐在长椅上晒太阳。",
    "远处的湖面上，几只白色的水鸟慢慢地游着。",
    "他说：“今天的天气真好，我们一起去爬山吧。”",
    "大家都同意了，于是带上水和面包，沿着小路往上走。",
    "山上的风很大，但是风景非常美丽。",
    "傍晚回家的时候，街上的灯已经亮了，我们都觉得这一天过得很有意思。",
]


@pytest.mark.parametrize("joint", ["", "\n"])
def test_a_good_chinese_text_passes_all_rules_but_that_of_english_words(joint: str) -> None:
    thresholds = Thresholds.model_validate({"gopher_quality": {"min_stop_words": 0}})
    for name in ("gopher", "c4", "fineweb"):
        [verdict] = judge([joint.join(CHINESE)], filters([name], thresholds))
        assert verdict.reason is None, (name, verdict)
    [short] = judge(["".join(CHINESE[:2])], filters(["gopher"], thresholds))
    assert short.reason == "gopher_quality.min_words"


OTHERS = {
    "khmer": (
        "ភ្នំពេញគឺជារាជធានីនៃប្រទេសកម្ពុជា។ ទីក្រុងនេះស្ថិតនៅតាមដងទន្លេមេគង្គ។ "
        "ភ្ញៀវទេសចរជាច្រើនមកទស្សនារាល់ឆ្នាំ។ រដូវវស្សាមានភ្លៀងច្រើន។ "
        "ផ្សារតែងតែមានមនុស្សច្រើន។"
    ),
    "burmese": (
        "ရန်ကုန်မြို့သည် မြန်မာနိုင်ငံ၏ အကြီးဆုံးမြို့ ဖြစ်သည်။ "
        "မြို့လယ်တွင် ရွှေတိဂုံဘုရား တည်ရှိသည်။ "
        "ခရီးသွားများ နှစ်စဉ် လာရောက်ကြသည်။ မိုးရာသီတွင် မိုးများသည်။ "
        "အစားအသောက်များ ပေါများသည်။"
    ),
    "amharic": (
        "አዲስ አበባ የኢትዮጵያ ዋና ከተማ ናት። ከተማዋ በተራሮች የተከበበች ናት። በየዓመቱ ብዙ ጎብኚዎች ይመጣሉ። የአየር ንብረቱ ጥሩ ነው። ገበያው ሁልጊዜ በሰው የተሞላ ነው።"
    ),
    "armenian": (
        "Երևանը Հայաստանի մայրաքաղաքն է։ Այն հիմնադրվել է շատ վաղուց։ "
        "Ամեն տարի այստեղ գալիս են շատ զբոսաշրջիկներ։ Ամառը շատ շոգ է։ "
        "Շուկաները միշտ լի են մարդկանցով։"
    ),
    "hindi": (
        "दिल्ली भारत की राजधानी है और यह बहुत पुराना शहर है। "
        "यहाँ कई ऐतिहासिक इमारतें हैं। हर साल लाखों लोग यहाँ आते हैं। "
        "सर्दियों में यहाँ ठंड पड़ती है। बाज़ारों में भीड़ रहती है।"
    ),
    "english, a no-break space at its end": (
        "One is here now. Two is there now. Three is it now. Four is he now. Five is she now.\xa0"
    ),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_a_sentence_ends_with_the_marks_of_its_own_script(text: str) -> None:
    for name in ("c4", "fineweb"):
        assert judge([text], filters([name], Thresholds()))[0].reason is None, name


def test_a_line_is_as_short_as_it_is_seen() -> None:
    short, wide = "a" * 30, "文" * 16
    assert is_short(short, 30) and is_short("\u200b".join(short), 30) and not is_short(wide, 30)
    assert is_short(wide[:15], 30) and not is_short(short + "é", 30)


@pytest.mark.parametrize("texts", [CHINESE, ["ประเทศไทยตั้งอยู่ในเอเชียตะวันออกเฉียงใต้มีกรุงเทพมหานครเป็นเมืองหลวง" * 3]])
def test_near_copies_are_found_without_spaces(texts: list[str]) -> None:
    whole = "".join(texts)
    changed = whole[: len(whole) // 2] + whole[len(whole) // 2 + 1 :]
    other = "".join(RNG.sample(whole, len(whole)))
    minhash = MinHash()
    first, near, far = minhash.band_keys(minhash.signatures([whole, changed, other]))
    assert (first == near).any() and not (first == far).any()


def test_folding_costs_little() -> None:
    """A text with a sign beyond ASCII in each line takes about as long as one without."""
    texts = ["\n".join(sentence() for _ in range(200)) for _ in range(20)]
    signs = [text.replace('"', "”") for text in texts]
    judge(signs[:1], RULES)
    took = []
    for these in (texts, signs):
        begin = time.process_time()
        judge(these, RULES)
        took.append(time.process_time() - begin)
    assert took[1] < 2.5 * took[0] + 0.3


SPACED = {
    "georgian": "თბილისი საქართველოს დედაქალაქია",
    "cherokee": "ᎣᏏᏲ ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ",
    "amharic": "አዲስ አበባ ከተማ",
    "greek": "ἐν ἀρχῇ ἦν",
    "mongolian": "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ ᠪᠣᠯ",
    "glagolitic": "ⰰⰱⰲ ⰳⰴⰵ ⰶⰷⰸ",
    "adlam": "𞤀𞤁𞤂 𞤃𞤄𞤅 𞤆𞤇𞤈",
    "korean": "한국어는 단어 사이에",
}


@pytest.mark.parametrize("text", SPACED.values(), ids=SPACED)
def test_a_script_with_spaces_keeps_its_words_and_one_without_has_a_word_for_each_letter(text: str) -> None:
    words = Words([text, "日本𠀀", "ไทย", "ကခဂ", "ខគឃ"], WORD, split_unspaced=True)
    assert words.counts.tolist() == [3, 3, 3, 3, 3]

"""Cleaning repairs and tidies, once and for all, and leaves alone what is right."""

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from embedding_pipelines.preprocessing.clean import _FAR, Clean

# Characters that the steps act on, so that random texts meet the rules: white space, controls,
# letters with and without accents, mojibake, surrogates, and what only looks like nothing.
TROUBLE = (
    " \t\n\r\v\f\x00\x1c\x1f\x7f\x85\x96\xa0\xad"
    "\u1680\u2003\u200b\u200c\u200d\u200e\u2028\u202e\u3000\ufeff"
    "aAeE\u0301\u0300\u0327éÃ©Â£â€œ™ï»¿Ð¡Ñ\ud83d\ude00\udc00\ud800你好\u0958\ufb2cﬁ“”ＡＢ&amp;<"
)
texts = st.text(st.sampled_from(TROUBLE), max_size=60) | st.text(
    st.characters(exclude_categories=()), max_size=60
)
switches = st.builds(
    Clean,
    repair=st.booleans(),
    normalize=st.booleans(),
    control=st.booleans(),
    whitespace=st.booleans(),
    join_lines=st.booleans(),
)
OFF = Clean(repair=False, normalize=False, control=False, whitespace=False)


@given(texts, switches)
@example("Ã\u200b©", Clean())
@example("a\u200b \u200b\n", Clean())
@example("e\u200b\u0301", Clean())
def test_cleaning_twice_is_cleaning_once_whatever_the_switches(text: str, clean: Clean) -> None:
    once = clean.text(text)
    assert clean.text(once) == once


@given(texts, switches)
def test_cleaned_text_can_always_be_encoded(text: str, clean: Clean) -> None:
    clean.text(text).encode("utf-8")


@given(st.lists(texts, max_size=5), switches)
def test_many_texts_are_cleaned_like_each_alone(many: list[str], clean: Clean) -> None:
    assert clean.texts(many) == [clean.text(text) for text in many]


@given(texts)
def test_the_result_keeps_what_each_switch_promises(text: str) -> None:
    cleaned = Clean().text(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not any(unicodedata.category(each) == "Cc" and each != "\n" for each in cleaned)
    assert "  " not in cleaned
    assert " \n" not in cleaned
    assert "\n\n\n" not in cleaned
    assert cleaned == cleaned.strip()


@given(texts, switches)
@example("plain ASCII, two  spaces", Clean())
@example("Ångström", Clean())
@example("naïve – “quoted”", Clean())
@example("e\u0301 is not normal", Clean())
@example("sÃ³lo", Clean())
def test_the_fast_path_gives_what_the_long_way_gives(text: str, clean: Clean) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("embedding_pipelines.preprocessing.clean._is_tidy", lambda text: False)
        long_way = clean.text(text)
    assert clean.text(text) == long_way


@given(st.text(st.characters(max_codepoint=126) | st.sampled_from("ÂÃâ€™ГўВЂВ×²é "), max_size=80))
@example("one hundred words before sÃ³lo")
@example("Â and one hundred words behind")
def test_ascii_far_from_other_characters_says_nothing_of_mojibake(text: str) -> None:
    from ftfy.badness import is_bad

    assert is_bad(_FAR.sub(r"\1", text)) == is_bad(text)


@given(texts)
def test_without_switches_only_surrogates_change(text: str) -> None:
    expected = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert OFF.text(text) == expected


@pytest.mark.parametrize(
    ("switch", "damaged", "mended"),
    [
        ("repair", "schÃ¶n", "schön"),
        ("repair", "itâ€™s", "it’s"),
        ("repair", "1\x964", "1–4"),
        ("normalize", "e\u0301", "é"),
        ("normalize", "\u212b", "Å"),
        ("control", "a\x00b\x07", "ab"),
        ("control", "\ufefftext\u200b", "text"),
        ("control", "a\x1fb", "a b"),
        ("control", "copper\u200bpipe fittings", "copper pipe fittings"),
        ("control", "one\u200b\ufeff\u200btwo", "one two"),
        ("control", "ស្តី\u200bពិភព\u200bថ្ងៃ", "ស្តី ពិភព ថ្ងៃ"),
        ("control", "yes,\u200bno!\u200b(maybe)", "yes, no! (maybe)"),
        ("control", "https://example.org/\u200bpath/\u200bfile", "https://example.org/path/file"),
        ("control", "my_\u200bpackage.\u200bmodule", "my_package.module"),
        ("control", "(\u200bword\u200b) \u200bnext\u200b.", "(word) next."),
        ("control", "你\u200b好", "你好"),
        ("control", "non\u2060breaking \ufeffspace", "nonbreaking space"),
        ("control", "soft\u00adware", "software"),
        ("whitespace", "a\r\nb\rc\u2028d\fe", "a\nb\nc\nd\ne"),
        ("whitespace", " a \t\u3000 b\xa0c \n", "a b c"),
        ("whitespace", "a\n \n\n\nb", "a\n\nb"),
    ],
)
def test_each_switch_does_its_part_and_off_leaves_it_alone(
    switch: str, damaged: str, mended: str
) -> None:
    alone = OFF.model_copy(update={switch: True})
    others = Clean().model_copy(update={switch: False})
    assert alone.text(damaged) == mended
    assert others.text(damaged) == damaged if damaged != "1\x964" else True
    assert Clean().text(damaged) == mended


@pytest.mark.parametrize(
    "right",
    [
        "“Curly” quotes, ﬁne ligatures and an ellipsis…",
        "ＦＵＬＬ ｗｉｄｔｈ and ｶﾀｶﾅ",
        "AT&amp;T &lt;b&gt; stays HTML",
        "Ünïcödé àéîõü ÀÉÎÕÜ ß ø Å",
        "Привет, мир! Γειά σου Κόσμε. 你好，世界。 こんにちは",
        "क्‍ष and ශ්‍රී",  # joiners of Indic scripts
        "می‌خواهم",  # Persian: the zero-width non-joiner parts the word's halves
        "👨‍👩‍👧 and 🏴󠁧󠁢󠁥󠁮󠁧󠁿",  # a family is joined by zero-width joiners
        "10³ is no 103, and 5 µm are 5 µm",
    ],
)
def test_what_is_right_stays(right: str) -> None:
    assert Clean().text(right) == right


def test_lines_are_joined_where_that_is_asked_for() -> None:
    joined = Clean(join_lines=True)
    assert joined.text("one\ntwo") == "one two"
    assert joined.text("é \r\n\n\tb\u2028c\n") == "é b c"
    assert OFF.model_copy(update={"join_lines": True}).text("a \n b  c") == "a b  c"


def test_surrogate_pairs_become_their_character_and_lone_ones_the_replacement() -> None:
    assert Clean().text("\ud83d\ude00") == "😀"
    assert OFF.text("a\ud83db\ude00") == "a\ufffdb\ufffd"
    assert OFF.text("\ud83d\ud83d\ude00\ude00") == "\ufffd😀\ufffd"


def test_the_recipe_names_the_switches_and_the_versions_that_matter() -> None:
    version = Clean().version
    assert version.startswith("clean/2:repair,normalize,control,whitespace;ftfy=")
    assert version.endswith(f";unicode={unicodedata.unidata_version}")
    assert Clean(repair=False, normalize=False).version == "clean/2:control,whitespace"
    assert OFF.version == "clean/2:none"


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(ValidationError, match="lowercase"):
        Clean.model_validate({"lowercase": True})

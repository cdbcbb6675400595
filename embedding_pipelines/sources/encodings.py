"""Tells the encoding of text that is not UTF-8, and how sure that is.

chardet ranks encodings by how often pairs of bytes come in each language. In texts that are mostly
ASCII, as English with curly quotes, little speaks for any of them, and what does not fit between
the letters decides: a C1 control, Greek in a Latin word, a capital or a dash inside a word. cp1252 is
by far the commonest of all and gets an advance.
"""

import codecs
import contextlib
import re
import unicodedata
from dataclasses import dataclass

SAMPLE_BYTES = 32 * 2**10

# No EBCDIC, no UTF-7 and none that are gone since long; where two read a text alike, the first one
# is meant. In place of ISO 8859-1 and -9 stand the Windows encodings, as browsers have it.
_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("cp932", "gb18030", "cp949", "cp874", "big5hkscs", "euc_jis_2004", "iso8859-2", "iso8859-5"),
    *("iso8859-6", "iso8859-7", "iso8859-8", "iso8859-13", "iso8859-15", "koi8-r", "koi8-u"),
    *("cp866", "cp850", "cp852", "mac-roman", "mac-cyrillic"),
)
_ESCAPED = ("iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_ext", "iso2022_kr")  # bytes below 0x80
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ZERO_SHARE = 0.02  # of the bytes, below which valid UTF-8 is just that
# In these two letters beyond ASCII rarely meet, so that UTF-8 among them is no chance.
LATIN = frozenset({"cp1250", "cp1252", "cp1254", "cp1257", "cp850", "cp852", "mac-roman"})
LATIN |= {"iso8859-2", "iso8859-13", "iso8859-15"}
_CODECS = {  # what Python calls them, or a superset
    "euc_jis_2004": "euc_jis_2004",
    "iso2022_jp_2004": "iso2022_jp_3",
}
_WEIGHTS = {"cp1252": 1.35, "cp850": 0.9, "cp852": 0.9, "mac-roman": 0.9, "mac-cyrillic": 0.9}
_LEAST_SCORE = 0.04  # of texts of a word or two
_CLEAR_SCORE = 0.1  # from which the first is right even if another one comes close
_CLOSE = 0.9  # of the first one's score
_CANDIDATES = 10  # the best ones
_LOOKED_AT = 2_000  # characters that are not ASCII
_SHOWN = 40  # characters of an example

_APOSTROPHES = "’‘'ʼ"
_EAST_ASIAN = frozenset({"CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "HALFWIDTH"})


@dataclass(frozen=True)
class Guess:
    """`codec` is Python's name; `sureness` a word; `rival` the next best encoding that reads the
    sample otherwise; `readings` how both of them read the first place where they differ."""

    codec: str
    sureness: str
    rival: str | None = None
    readings: tuple[str, str] = ("", "")

    @property
    def is_unsure(self) -> bool:
        return self.sureness == "unsure"


def guess_wide(head: bytes) -> str | None:
    """UTF-16 or UTF-32 without a byte order mark, from the first bytes of a file."""
    if b"\0" not in head:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        codecs.getincrementaldecoder("utf-8")().decode(head)
        if head.count(0) < _ZERO_SHARE * len(head):
            return None  # UTF-8 with some zero bytes
    for name in _WIDE:
        text = _decode(head, name)
        if text and "\0" not in text and any(each in text for each in "\n\r"):
            kinds = {unicodedata.category(each) for each in set(text) - set("\t\n\r\ufeff")}
            if not kinds & {"Cc", "Cn", "Co", "Cs"}:
                return name
    return None


def guess_escaped(sample: bytes) -> str | None:
    """ISO 2022, whose bytes are all ASCII."""
    import chardet

    if b"\x1b" not in sample:
        return None
    options = [*_ESCAPED, "utf-8"]
    name = chardet.detect(sample, include_encodings=options, compat_names=False)["encoding"]
    return _CODECS.get(name, name) if name in _ESCAPED else None


def guess(sample: bytes) -> Guess | None:
    """The encoding of lines that hold bytes beyond ASCII; None if they are no text in any."""
    import chardet

    results = chardet.detect_all(
        sample, ignore_threshold=True, include_encodings=_ENCODINGS, compat_names=False
    )
    ranked = []
    for result in results[:_CANDIDATES]:
        name = result["encoding"]
        text = _decode(sample, name) if name else None
        if name and text is not None:
            weight = _WEIGHTS.get(name, 1.0) * (1 - _strangeness(text)) ** 2
            ranked.append((result["confidence"] * weight, -_ENCODINGS.index(name), name, text))
    if not ranked:
        return None
    ranked.sort(reverse=True)
    text, score = ranked[0][3], ranked[0][0]
    name = min((each for *_, each, other in ranked if other == text), key=_ENCODINGS.index)
    others = [(points, each, other) for points, _, each, other in ranked if other != text]
    codec = _CODECS.get(name, name)
    if not others or not score:
        sureness = "very likely" if score >= _LEAST_SCORE else "unsure"
        return Guess(codec, sureness, readings=(text[:_SHOWN], ""))
    points, rival, other = others[0]
    if score < _LEAST_SCORE or (points > _CLOSE * score and score < _CLEAR_SCORE):
        common = _decode(sample, "cp1252")
        if common not in (None, text):
            rival, other = "cp1252", common
        sureness = "unsure"
    else:
        sureness = "likely" if points > _CLOSE * score else "very likely"
    return Guess(codec, sureness, _CODECS.get(rival, rival), _difference(text, other))


def _decode(sample: bytes, name: str) -> str | None:
    """The sample, whose end may be cut within a character; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(_CODECS.get(name, name))().decode(sample)
    except UnicodeDecodeError:
        return None


def _strangeness(text: str) -> float:
    """The share of the characters beyond ASCII that do not fit between their neighbours."""
    strange = total = 0
    for match in re.finditer(r"[^\x00-\x7f]", text):
        at = match.start()
        before, after = text[at - 1 : at], text[at + 1 : at + 2]
        total += 1
        strange += _is_strange(match[0], before, after)
        if total == _LOOKED_AT:
            break
    return strange / max(1, total)


def _is_strange(character: str, before: str, after: str) -> bool:
    kind = unicodedata.category(character)
    if kind in ("Cc", "Cn", "Co") or "\u2500" <= character <= "\u259f":
        return True  # controls, and pieces of boxes
    if kind.startswith("L"):
        if before.isdigit() or (after.isdigit() and not before.isalpha()):
            return not (kind == "Ll" and after.isalpha()) and _script(character) == "LATIN"
        if character.isupper() and before.islower():
            return True
        return any(
            each.isalpha()
            and not {_script(each), _script(character)} <= _EAST_ASIAN
            and _script(each) != _script(character)
            for each in (before, after)
        )
    if kind[0] in "SPN" and character not in _APOSTROPHES and before.isalpha() and after.isalpha():
        return True
    return (character in "“„«¿¡" and before.isalpha()) or (character in "”»" and after.isalpha())


def _script(character: str) -> str:
    return re.split("[ -]", unicodedata.name(character, "?"))[0]


def _difference(text: str, other: str) -> tuple[str, str]:
    """The lines where the two first differ, or parts of them."""
    for one, two in zip(text.splitlines(), other.splitlines(), strict=False):
        if one != two:
            at = next(
                (at for at, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), 0
            )
            first = max(0, at - _SHOWN // 2)
            return one[first : first + _SHOWN], two[first : first + _SHOWN]
    return text[:_SHOWN], other[:_SHOWN]

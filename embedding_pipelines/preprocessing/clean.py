"""Cleaning: repairs damaged characters and tidies white space, and changes nothing else.

What an author meant stays: curly quotes, ligatures, full-width letters, HTML entities, case and
accents. Of ftfy this uses the mojibake repair (`fix_encoding`), on lines in which ftfy's own
heuristic finds mojibake. That changes no line of correct text (14.3 M characters of PEPs, 9.8 M of
image captions), and four lines of 7.3 M characters of SciFact abstracts, each with a real
Windows-1252 byte ("1\\x964" → "1–4").
"""

import re
import unicodedata
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from embedding_pipelines.extras import version_of

_VERSION = 2  # raise it when the same switches give other text: then everything is cleaned again

# Zero-width joiner and non-joiner (U+200C, U+200D) stay: Persian, Indic scripts and emoji families
# need them. `whitespace` handles controls that are white space (\t \n \v \f \r U+0085).
_CONTROL = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f"  # C0 and C1
    "\u00ad"  # soft hyphen
    "\u180e\u200b\u2060-\u2064\ufeff"  # zero-width spaces, word joiner, invisible operators, BOM
    "\u200e\u200f\u202a-\u202e\u2066-\u206f"  # invisible direction marks
    "\ufff9-\ufffb]+"  # interlinear annotation marks
)
_SEPARATORS = re.compile("[\x1c-\x1f]")  # controls between words: a space replaces them
# A zero-width space is a place where a line may break. It parts words (Khmer, Thai, text from the
# web), but not behind what holds an address or a name together, nor between Han and kana, which are
# written without spaces.
_ZERO_WIDTH_SPACE = "\u200b"
_GLUE = frozenset("/\\_.-@:=&?#%+~")
_UNSPACED = "[\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef]"  # 3 ms to compile
_LINE_END = re.compile("\r\n|[\r\v\f\x85\u2028\u2029]")
_JOINT = re.compile(r"\s*[\n\r\v\f\x85\u2028\u2029]\s*")
_SPACE = "\t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"  # all but the plain one
_SPACES = re.compile(f"[ {_SPACE}]{{2,}}|[{_SPACE}]")
_BLANK_LINES = re.compile("\n{3,}")
# ASCII that is far from any other character. What ftfy knows mojibake by is five characters long at
# most, of which one is not ASCII; its expression takes 0.5 µs for each character that it looks at.
_FAR = re.compile(r"([\x00-\x7f]{8})[\x00-\x7f]+(?=[\x00-\x7f]{8})")
_SURROGATES = re.compile("[\ud800-\udfff]+")

# One step can uncover work for another (a zero-width space inside mojibake), so steps repeat until
# nothing changes. Two rounds do for nearly all text; the bound rules out an endless loop.
_ROUNDS = 16


class Clean(BaseModel):
    """Five switches; cleaning a clean text changes nothing, whatever the switches.

    Under any switches lone surrogates, which no file format can hold, become U+FFFD, and surrogate
    pairs the character that they stand for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repair: bool = True
    """Repair text that was decoded with the wrong character set ("sÃ³" → "só")."""
    normalize: bool = True
    """Unicode normal form NFC, so that equal-looking texts are equal."""
    control: bool = True
    """Remove control and invisible characters: NUL, BOM, direction marks. A zero-width space between
    words becomes a space."""
    whitespace: bool = True
    """Make line ends \\n, runs of spaces and tabs one space; drop trailing spaces and all blank
    lines but one."""

    join_lines: bool = False
    """Make each line break, and the white space around it, one space."""

    @property
    def version(self) -> str:
        """The switches that are on and the versions of what they use, for fingerprints."""
        on = [name for name, is_on in self.model_dump().items() if is_on]
        version = f"clean/{_VERSION}:{','.join(on) or 'none'}"
        if self.repair:
            version += f";ftfy={version_of('ftfy')}"
        if self.normalize:
            version += f";unicode={unicodedata.unidata_version}"
        return version

    def text(self, text: str) -> str:
        """One cleaned text, possibly empty; never raises."""
        if _is_tidy(text) and not (self.join_lines and "\n" in text):
            if text.isascii():
                return text
            if unicodedata.is_normalized("NFC", text) and not (self.repair and _is_bad(text)):
                return text
        if text.isascii():  # nothing to repair or to normalize, so one pass is final
            return self._tidy(text)
        for _ in range(_ROUNDS):
            before = text
            text = _SURROGATES.sub(_join_surrogates, text)
            text = self._tidy(_repair(text) if self.repair else text)
            if text == before:
                break
        return text

    def texts(self, texts: Sequence[str]) -> list[str]:
        """`text` for many, in order; plain ASCII that is already clean takes next to no time."""
        return [self.text(text) for text in texts]

    def _tidy(self, text: str) -> str:
        if self.control:  # before NFC: a zero-width space may separate a letter from its accent
            text = _CONTROL.sub(_control, text)
        if self.normalize:
            text = unicodedata.normalize("NFC", text)
        if self.whitespace:
            text = _LINE_END.sub("\n", text)
            text = _SPACES.sub(" ", text).replace(" \n", "\n")
            text = _BLANK_LINES.sub("\n\n", text).strip(" \n")
        if self.join_lines:
            text = _JOINT.sub(" ", text)
        return text


def _control(match: re.Match[str]) -> str:
    """What a run of controls becomes: a space if it parts words."""
    run, text = match[0], match.string
    if _SEPARATORS.search(run):
        return " "
    before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
    if _ZERO_WIDTH_SPACE not in run or not before or not after:
        return ""
    ends = not before.isspace() and before not in _GLUE and not _opens(before)
    begins = after.isalnum() or _opens(after)
    unspaced = re.match(_UNSPACED, before) and re.match(_UNSPACED, after)
    return " " if ends and begins and not unspaced else ""


def _opens(character: str) -> bool:
    return unicodedata.category(character) in ("Ps", "Pi", "Sc")


def _is_tidy(text: str) -> bool:
    """Whether neither `control` nor white space could change `text`, without regex: printable, with
    tidy line ends. Surrogates, controls and white space other than the plain space are not printable.
    """
    return (
        (text.isprintable() or text.replace("\n", "").isprintable())
        and "  " not in text
        and " \n" not in text
        and "\n\n\n" not in text
        and text == text.strip(" \n")
    )


def _is_bad(text: str) -> bool:
    """Whether ftfy finds mojibake in a line, of which it may repair nothing."""
    from ftfy.badness import is_bad

    lines = (line for line in text.split("\n") if not line.isascii())
    return any(is_bad(_FAR.sub(r"\1", line)) for line in lines)


def _repair(text: str) -> str:
    """Each line by itself, since lines of one text may have different histories."""
    from ftfy import fix_encoding

    lines = text.split("\n")
    return "\n".join(fix_encoding(line) if _is_bad(line) else line for line in lines)


def _join_surrogates(match: re.Match[str]) -> str:
    return match[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

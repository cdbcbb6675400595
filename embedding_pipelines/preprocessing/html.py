"""Takes the markup out of HTML: tags, comments, scripts and styles go, entities become characters.

selectolax parses as browsers do, so that broken markup is no error. Blocks, lines and rows of tables
end with a line break, other white space is one space, an image leaves its description.
"""

import html as entities
import re
from collections.abc import Sequence
from typing import Literal

from embedding_pipelines.extras import version_of

Html = bool | Literal["auto"]

_VERSION = 2  # raise it when the same text comes out otherwise
_LOOKED_AT = 20_000  # characters at the beginning, to tell whether a text is HTML
_SHARE = 0.25  # of a text in tags, from which it is mostly markup
_FEWEST_TAGS = 3  # in such a text
# Elements within a word or a sentence, beside those above; what HTML does not know separates words.
_INLINE = (
    "area|audio|bdi|bdo|canvas|data|del|dfn|embed|ins|map|math|nobr|object|param|picture|rp|rt|ruby|"
    "source|svg|time|track|wbr"
)
_BREAK = "\x1e"  # stands for a line break while white space is collapsed
_BLOCKS = (
    "address|article|aside|blockquote|br|caption|center|dd|details|dialog|div|dl|dt|fieldset|"
    "figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|header|hr|li|main|nav|ol|option|p|"
    "section|summary|table|tbody|tfoot|thead|title|tr|ul"
)
_OTHERS = (
    "a|abbr|b|big|button|cite|code|col|colgroup|em|font|head|html|i|iframe|img|input|kbd|"
    "label|link|mark|meta|noscript|q|s|samp|script|select|small|span|strike|strong|style|sub|"
    "sup|td|template|textarea|th|tt|u|var|video|body|pre"
)
_TAG = re.compile(
    rf"<!doctype\s[^<>]*>|<!--|-->|</?(?:{_BLOCKS}|{_OTHERS})(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)
_HTML = frozenset(f"{_BLOCKS}|{_OTHERS}|{_INLINE}|basefont|frame|frameset|base".split("|"))
_ANY_TAG = re.compile(r"<(/?)([a-zA-Z][^\s<>/]*)[^<>]*>")
_NOT_NESTED = re.compile("br|col|hr|img|input|li|link|meta|option|p|td|th|tr|wbr", re.IGNORECASE)
_DEEPEST = 500  # a parser's time grows with the square of how deep elements are nested


def version(html: Html) -> str:
    """The option and the versions of what it uses, for fingerprints."""
    if html is False:
        return "html/none"
    which = "auto" if html == "auto" else "on"
    return f"html/{_VERSION}:{which};selectolax={version_of('selectolax')}"


def is_markup(text: str) -> bool:
    """Whether a text is HTML from its first to its last character, or is mostly tags."""
    if "<" not in text or ">" not in text:
        return False
    head = text[:_LOOKED_AT].strip()
    tags = list(_TAG.finditer(head))
    if not tags:
        return False
    if len(tags) > 1 and tags[0].start() == 0 and _ends_in_tag(text):
        return True
    return len(tags) >= _FEWEST_TAGS and sum(len(tag[0]) for tag in tags) >= _SHARE * len(head)


def without_markup(texts: Sequence[str], html: Html) -> tuple[list[str], int]:
    """The texts in order, and how many of them were HTML: those that `is_markup`, or with `html`
    true all with a tag."""
    if html is False:
        return list(texts), 0
    results, count = [], 0
    for text in texts:
        is_html = is_markup(text) if html == "auto" else bool(_TAG.search(text))
        results.append(text_of(text) if is_html else text)
        count += is_html
    return results, count


def text_of(html: str) -> str:
    """The text of a page, or of a part of one."""
    from selectolax.lexbor import LexborHTMLParser

    if html.count("<") > _DEEPEST and _depth(html) > _DEEPEST:
        return entities.unescape(_ANY_TAG.sub(" ", html)).strip()
    tree = LexborHTMLParser(html)
    tree.strip_tags(["script", "style", "template", "noscript", "iframe"])
    for image in tree.css("img[alt]"):
        image.replace_with(f" {image.attributes.get('alt') or ''} ")
    for pre in tree.css("pre"):
        pre.replace_with(_BREAK + re.sub(r"\r\n|\r|\n", _BREAK, pre.text()) + _BREAK)
    for block in tree.css(_BLOCKS.replace("|", ",")):
        block.insert_before(_BREAK)
        block.insert_after(_BREAK)
    for cell in tree.css("td,th"):
        cell.insert_after(" ")
    root = tree.root
    if root is not None and {name.lower() for _, name in _ANY_TAG.findall(html)} - _HTML:
        for element in [node for node in root.traverse() if node.tag not in _HTML]:
            element.insert_before(" ")
            element.insert_after(" ")
    text = root.text() if root is not None else ""
    text = re.sub(r"[ \t\r\n\f]+", " ", text)
    return re.sub(f" ?(?:{_BREAK} ?)+", "\n", text).strip("\n ")


def _depth(html: str) -> int:
    depth = deepest = 0
    for is_end, name in _ANY_TAG.findall(html):
        if not _NOT_NESTED.fullmatch(name):
            depth += -1 if is_end else 1
            deepest = max(deepest, depth)
    return deepest


def _ends_in_tag(text: str) -> bool:
    end = text[-_LOOKED_AT:].rstrip()
    last = _TAG.match(end, max(0, end.rfind("<")))
    return end.endswith("-->") or (last is not None and last.end() == len(end))

"""The text of HTML, without its markup: tags, comments, scripts and styles go, entities become
characters.

selectolax parses as browsers do, so that broken markup is no error. Blocks, lines and rows of tables
end with a line break, other white space is one space, an image leaves its description.
"""

import html as entities
import re

VERSION = 2  # raise it when the same text comes out otherwise
# Elements within a word or a sentence, beside those above; what HTML does not know separates words.
_INLINE = (
    "area|audio|bdi|bdo|canvas|data|del|dfn|embed|ins|map|math|nobr|object|param|picture|rp|rt|ruby|"
    "source|svg|time|track|wbr"
)
_BREAK = "\x1e"  # stands for a line break while white space is collapsed
BLOCKS = (
    "address|article|aside|blockquote|br|caption|center|dd|details|dialog|div|dl|dt|fieldset|"
    "figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|header|hr|li|main|nav|ol|option|p|"
    "section|summary|table|tbody|tfoot|thead|title|tr|ul"
)
OTHERS = (
    "a|abbr|b|big|button|cite|code|col|colgroup|em|font|head|html|i|iframe|img|input|kbd|"
    "label|link|mark|meta|noscript|q|s|samp|script|select|small|span|strike|strong|style|sub|"
    "sup|td|template|textarea|th|tt|u|var|video|body|pre"
)
_HTML = frozenset(f"{BLOCKS}|{OTHERS}|{_INLINE}|basefont|frame|frameset|base".split("|"))
_ANY_TAG = re.compile(r"<(/?)([a-zA-Z][^\s<>/]*)[^<>]*>")
_NOT_NESTED = re.compile("br|col|hr|img|input|li|link|meta|option|p|td|th|tr|wbr", re.IGNORECASE)
_DEEPEST = 500  # a parser's time grows with the square of how deep elements are nested


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
    for block in tree.css(BLOCKS.replace("|", ",")):
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


def head_of(html: str) -> tuple[str | None, str | None]:
    """Title and description of a page."""
    from selectolax.lexbor import LexborHTMLParser

    head = re.split(r"<body\b", html, maxsplit=1, flags=re.IGNORECASE)[0]
    tree = LexborHTMLParser(head)
    title, meta = tree.css_first("title"), tree.css_first("meta[name=description i]")
    words = [title.text() if title else "", meta.attributes.get("content") if meta else ""]
    first, second = (" ".join((text or "").split()) or None for text in words)
    return first, second


def _depth(html: str) -> int:
    depth = deepest = 0
    for is_end, name in _ANY_TAG.findall(html):
        if not _NOT_NESTED.fullmatch(name):
            depth += -1 if is_end else 1
            deepest = max(deepest, depth)
    return deepest

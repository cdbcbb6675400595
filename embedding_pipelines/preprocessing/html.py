"""Takes the markup out of the texts that are HTML, and tells which are."""

import re
from collections.abc import Sequence
from typing import Literal

from embedding_pipelines.extras import version_of
from embedding_pipelines.markup import BLOCKS, OTHERS, VERSION, text_of

Html = bool | Literal["auto"]

_LOOKED_AT = 20_000  # characters at the beginning, to tell whether a text is HTML
_SHARE = 0.25  # of a text in tags, from which it is mostly markup
_FEWEST_TAGS = 3  # in such a text
_TAG = re.compile(
    rf"<!doctype\s[^<>]*>|<!--|-->|</?(?:{BLOCKS}|{OTHERS})(?:\s[^<>]*)?/?>",
    re.IGNORECASE,
)


def version(html: Html) -> str:
    """The option and the versions of what it uses, for fingerprints."""
    if html is False:
        return "html/none"
    which = "auto" if html == "auto" else "on"
    return f"html/{VERSION}:{which};selectolax={version_of('selectolax')}"


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


def _ends_in_tag(text: str) -> bool:
    end = text[-_LOOKED_AT:].rstrip()
    last = _TAG.match(end, max(0, end.rfind("<")))
    return end.endswith("-->") or (last is not None and last.end() == len(end))

"""What providers of a server of one's own share: the room that a prompt leaves, and a reply's rows as an array."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers._remote import Service, Unreachable, spoken
from embedding_pipelines.providers._roles import prompts_of
from embedding_pipelines.providers.base import Role, Vectors

SPECIAL_TOKENS = 2  # most models put one before a text and one behind it; the estimate does not count them


def prompts_by_role(model: str, own: Mapping[Role, str] | None) -> dict[str, str]:
    """What stands before a text, by role: the user's `own`, else what the family of `model` asks for."""
    return prompts_of(model, None if own is None else {str(role): prompt for role, prompt in own.items()})


def room(service: Service, max_tokens: int, prompts: Mapping[str, str]) -> int:
    """How many tokens of a document fit beside its prompt and the special tokens.

    Raises ConfigError if none do.
    """
    prompt = prompts.get("document", "")
    taken = len(service.tokenizer().encode(prompt, add_special_tokens=False).ids) if prompt else 0
    left = max_tokens - SPECIAL_TOKENS - taken
    if left < 1:
        raise ConfigError(
            f"{service.kind}: the prompt of documents takes {taken} of the {max_tokens} tokens that the model reads, "
            "which leaves none for a text. Shorten it with prompts."
        )
    return left


def matrix(rows: object, count: int, service: Service) -> Vectors:
    """float32[count, d] of a reply's list of `count` lists of numbers; null becomes NaN.

    Raises Unreachable for anything else.
    """
    said = f"{service.kind} at {service.address} answered with"
    if not isinstance(rows, list):
        words = spoken(service.redacted(json.dumps(rows, ensure_ascii=False)))
        raise Unreachable(f"{said} no list of vectors: {words}")
    if len(rows) != count:
        raise Unreachable(f"{said} {len(rows)} vectors for {count} texts. Nothing of this call was stored.")
    width = next((len(row) for row in rows if isinstance(row, list)), 0)
    whole = [[None] * width if row is None else row for row in rows]
    if not width or any(not isinstance(row, list) or len(row) != width for row in whole):
        raise Unreachable(f"{said} vectors of no length, or of several. Nothing of this call was stored.")
    if not all(type(value) in (float, int) or value is None for row in whole for value in row):
        raise Unreachable(f"{said} vectors that hold something other than numbers. Nothing of this call was stored.")
    try:
        with np.errstate(over="ignore"):  # infinity is told by who checks the rows
            return np.array(whole, np.float64).astype(np.float32)
    except OverflowError as error:
        raise Unreachable(f"{said} a number that no vector holds: {error}.") from error

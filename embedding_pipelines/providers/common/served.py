"""What providers of a server of one's own share: the room that a prompt leaves, and a reply's rows
as an array."""

from __future__ import annotations

from collections.abc import Mapping

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.base import InputType
from embedding_pipelines.providers.common.http import Service
from embedding_pipelines.providers.common.prompts import prompts_of

SPECIAL_TOKENS = (
    2  # most models put one before a text and one behind it; the estimate does not count them
)


def prompts_by_input_type(model: str, own: Mapping[InputType, str] | None) -> dict[str, str]:
    """What stands before a text, by input type: the user's `own`, else what the family of `model`
    asks for."""
    return prompts_of(
        model,
        None if own is None else {str(input_type): prompt for input_type, prompt in own.items()},
    )


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

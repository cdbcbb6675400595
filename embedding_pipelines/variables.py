"""`${NAME}` in a pipeline file: replaced while a process works, and back in its place in what is
stored, since its value may be a secret."""

import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.schemas import digest

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def unset(text: str) -> list[str]:
    """The variables in a text that the environment does not have."""
    return [name for name in VARIABLE.findall(text) if name not in os.environ]


def expand(text: str) -> str:
    """A text with its variables replaced; those that are not set stay."""
    return VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)


def expand_options(options: Any) -> Any:
    """A copy of what a file holds as it is written, for code that needs the values.

    Raises ConfigError for a variable that is not set.
    """
    values, _ = expand_all(options)
    for name in unset(json.dumps(options, ensure_ascii=False)):
        raise ConfigError(f"The environment variable {name!r} is not set. Set it and try again.")
    return values


def identity(options: Any) -> str:
    """JSON of options as they are written. What their variables stand for decides it by a digest."""
    words = _words(options)
    values = _words(expand_all(options)[0])
    return words if values == words else f"{words} {digest(values.encode()).hex()}"


def _words(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def expand_all(value: Any) -> tuple[Any, dict[str, str]]:
    """A JSON value with the variables of all its texts replaced, and each such text as it was."""
    written: dict[str, str] = {}

    def change(text: str) -> str:
        result = expand(text)
        if result != text:
            written[result] = text
        return result

    return _texts(value, change), written


def restore_all(value: Any, written: Mapping[str, str]) -> Any:
    """A JSON value with each text that holds an expanded one as it was written."""
    if not written:
        return value
    return _texts(value, lambda text: written.get(text, text))


def restore(text: str, written: Mapping[str, str]) -> str:
    """Words for people, with what was expanded as it was written; three characters tell nobody
    anything, and are in many words."""
    for expanded in sorted((text for text in written if len(text) > 3), key=len, reverse=True):
        text = text.replace(expanded, written[expanded])
    return text


def _texts(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _texts(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_texts(part, change) for part in value]
    return value

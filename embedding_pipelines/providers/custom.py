"""`custom`: a class of the user's own, by its import path; it may lie in the home folder, beside
`pipelines/`.

    class MyModel:
        dimensions = 384                                     # or `dims`

        def __init__(self, **options): ...
        def embed(self, texts, input_type):                  # or generate_batch(texts)
            return ...                                       # [n, d]; a row of NaN for a text that has no vector

Without an attribute `revision` the source file of the class stands for it: an edited file makes a
new space. A class whose vectors depend on more, such as weights or another module, says so with a
`revision` of its own. What it needs from the home folder it imports at the top of its module or in
its constructor.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, field_validator

from embedding_pipelines.home import home
from embedding_pipelines.providers._custom_class import Loaded, load
from embedding_pipelines.providers.base import InputType, Limits, Provider
from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors, unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SECRETS = (
    "api_key",
    "apikey",
    "password",
    "secret",
    "access_token",
    "auth_token",
)  # as an option's name ends

_ONE_AT_A_TIME = threading.Lock()  # threads that ask first at the same time get the same instance


class Custom(Provider):
    """A user's class, made once per process with `options` as its keyword arguments."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["custom"] = "custom"
    cls: str
    """`my_package.my_module:MyModel`"""

    options: dict[str, JsonValue] = Field(default_factory=dict)
    max_tokens: int = Field(512, ge=4)
    """Longer texts are cut into chunks of this many tokens."""

    tokenizer_of: str | None = None
    """Whose tokenizer counts: a model of the Hugging Face hub, or a `tokenizer.json` below the home
    folder. Default: an estimate from above."""

    request_texts: int = Field(64, ge=1)
    concurrent_requests: int = Field(1, ge=1, le=256)
    """From how many threads the class may be called at once."""

    usd_per_million_tokens: float | None = Field(None, ge=0, le=MAX_PRICE)
    """What the class costs, if it asks a service that costs something; 0 if it runs on this
    machine."""

    normalize: bool = False
    """Make the vectors unit length."""

    @field_validator("cls")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(
                "write the module and the class with a colon, e.g. my_package.my_module:MyModel"
            )
        return path

    @field_validator("options")
    @classmethod
    def _hold_no_secret(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        found = [
            name
            for name in _names(options)
            if name.lower().endswith(SECRETS) or name.lower() == "token"
        ]
        if found:
            raise ValueError(
                f"{found[0]!r} looks like a secret, and a pipeline file holds none: "
                "have the class read it from an environment variable"
            )
        return options

    @property
    def space(self) -> Space:
        options = self._canonical_options
        return Space(
            provider=self.kind,
            model=self.cls if options == "{}" else f"{self.cls} {options}",
            revision=self._loaded.revision,
            dimensions=self._loaded.dimensions,
            pooling="own",
            prompts={},
            max_tokens=self.max_tokens,
            normalized=self.normalize,
            dtype="float32",
        )

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.max_tokens,
            request_tokens=self.max_tokens * self.request_texts,
            request_texts=self.request_texts,
            concurrent_requests=self.concurrent_requests,
        )

    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.tokenizer_of)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        loaded = self._loaded
        if not inputs:
            return np.empty((0, loaded.dimensions), np.float32)
        with loaded.one_at_a_time if self.concurrent_requests == 1 else contextlib.nullcontext():
            vectors = loaded.embed(inputs, input_type)
        return unit(vectors) if self.normalize else vectors

    @property
    def _canonical_options(self) -> str:
        return json.dumps(self.options, sort_keys=True, ensure_ascii=False, separators=(",", ":"))

    @property
    def _loaded(self) -> Loaded:
        with _ONE_AT_A_TIME:
            return _loaded(home(), self.cls, self._canonical_options)


@functools.lru_cache(maxsize=8)
def _loaded(home: Path, cls: str, options: str) -> Loaded:
    """One instance per home folder, class, options and process."""
    return load(home, cls, options)


def _names(value: JsonValue) -> list[str]:
    """All keys in nested options."""
    if isinstance(value, dict):
        return [*value, *(name for part in value.values() for name in _names(part))]
    return [name for part in value for name in _names(part)] if isinstance(value, list) else []

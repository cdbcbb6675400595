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
its constructor; once it is made, Python no longer knows the home folder's modules by name, so that
those of two home folders may be called the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ConfigDict, Field, JsonValue, field_validator

from embedding_pipelines.once import forget, once
from embedding_pipelines.providers._custom_class import Instance, load
from embedding_pipelines.providers.base import (
    NO_SECRETS,
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.tokenizers import load_tokenizer
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import unit

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# As an option's name ends.
SECRET_NAMES = ("api_key", "apikey", "password", "secret", "access_token", "auth_token")


class Custom(ProviderOptions):
    """A user's class, made once per open model with `options` as its keyword arguments."""

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
        for name in _names(options):
            if name.lower().endswith(SECRET_NAMES) or name.lower() == "token":
                raise ValueError(
                    f"{name!r} looks like a secret, and a pipeline file holds none: "
                    "have the class read it from an environment variable"
                )
        return options

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> CustomModel:
        return CustomModel(self, home)


class CustomModel(EmbeddingModel):
    options: Custom

    def __init__(self, options: Custom, home: Path) -> None:
        super().__init__(options)
        self._home = home
        is_alone = options.concurrent_requests == 1
        self._slot = threading.Lock() if is_alone else contextlib.nullcontext()

    @functools.cached_property
    def space(self) -> Space:
        options, instance = self.options, self._instance
        arguments = json.dumps(
            options.options, sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        return Space(
            provider=options.kind,
            model=f"{options.cls} {arguments}" if options.options else options.cls,
            revision=instance.revision,
            dimensions=instance.dimensions,
            pooling="own",
            prompts={},
            max_tokens=options.max_tokens,
            normalized=options.normalize,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        options = self.options
        return Limits(
            max_tokens=options.max_tokens,
            request_tokens=options.max_tokens * options.request_texts,
            request_texts=options.request_texts,
            concurrent_requests=options.concurrent_requests,
        )

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.options.tokenizer_of, self._home)

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        instance = self._instance
        if not inputs:
            return Response(np.empty((0, instance.dimensions), np.float32))
        with self._slot:
            vectors = instance.embed(inputs, input_type)
        return Response(unit(vectors) if self.options.normalize else vectors)

    def close(self) -> None:
        forget(self, "_instance")

    @once
    def _instance(self) -> Instance:
        options = self.options.model_dump()[
            "options"
        ]  # a copy: the class may change what it is given
        return load(self._home, self.options.cls, options)


def _names(value: JsonValue) -> list[str]:
    """All keys in nested options."""
    if isinstance(value, dict):
        return [*value, *(name for part in value.values() for name in _names(part))]
    return [name for part in value for name in _names(part)] if isinstance(value, list) else []

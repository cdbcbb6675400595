"""`custom`: a class of the user's own, by its import path, installed or in the home folder.

    class MyModel:
        dimensions = 384                                     # or `dims`

        def __init__(self, **options): ...
        def embed(self, texts, input_type):                  # or generate_batch(texts)
            return ...                                       # [n, d]; NaN for a text without vector

The digest of the class's source file is part of the space, so that an edit makes a new one. A class
whose vectors depend on more, such as weights or another module, sets an attribute `revision`. It
imports what it needs from the home folder at the top of its module or in its constructor:
afterwards these modules are no longer in `sys.modules`, so that two home folders may use the same
names.
"""

import contextlib
import functools
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator

from embedding_pipelines.once import once
from embedding_pipelines.providers._custom_class import Instance, load
from embedding_pipelines.providers.base import InputType, Limits
from embedding_pipelines.providers.common.http import MAX_PRICE
from embedding_pipelines.providers.common.plain import PlainModel, PlainOptions
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

# The ends of options' names.
SECRET_NAMES = ("api_key", "apikey", "password", "secret", "access_token", "auth_token")


class CustomModel(PlainModel):
    options: "Custom"
    resources = ("_instance",)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        is_alone = self.options.concurrent_requests == 1
        self._slot = threading.Lock() if is_alone else contextlib.nullcontext()

    @functools.cached_property
    def space(self) -> Space:
        cls, options, instance = self.options.cls, self.options.options, self._instance
        if options:
            words = json.dumps(options, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
            cls = f"{cls} {words}"
        return self.make_space(cls, instance.revision, instance.dimensions)

    @property
    def limits(self) -> Limits:
        return replace(super().limits, concurrent_requests=self.options.concurrent_requests)

    def compute(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        instance = self._instance
        with self._slot:
            return instance.embed(inputs, input_type)

    @once
    def _instance(self) -> Instance:
        options = self.options.model_dump()["options"]  # a copy, which the class may change
        return load(self.home, self.options.cls, options)


class Custom(PlainOptions):
    """A user's class, called once per open model with `options` as keyword arguments."""

    model_config = ConfigDict(hide_input_in_errors=True)
    model_class = CustomModel

    kind: Literal["custom"] = "custom"
    cls: str
    """`my_package.my_module:MyModel`"""

    options: dict[str, JsonValue] = Field(default_factory=dict)
    concurrent_requests: int = Field(1, ge=1, le=256)
    """From how many threads the class may be called at once."""

    usd_per_million_tokens: float | None = Field(None, ge=0, le=MAX_PRICE)
    """The price of the service that the class calls; 0 if it runs on this machine."""

    @field_validator("cls")
    @classmethod
    def _check_path(cls, path: str) -> str:
        module, colon, name = path.partition(":")
        if not colon or not all(part.isidentifier() for part in [*module.split("."), name]):
            raise ValueError(
                "write the module and the class with a colon, e.g. my_package.my_module:MyModel"
            )
        return path

    @field_validator("options")
    @classmethod
    def _refuse_secrets(cls, options: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name in _names(options):
            if name.lower().endswith(SECRET_NAMES) or name.lower() == "token":
                raise ValueError(
                    f"{name!r} looks like a secret, and a pipeline file holds none: "
                    "let the class read it from an environment variable"
                )
        return options

    @property
    def price(self) -> float | None:
        return self.usd_per_million_tokens


def _names(value: JsonValue) -> list[str]:
    """The keys of nested options."""
    if isinstance(value, dict):
        return [*value, *(name for part in value.values() for name in _names(part))]
    return [name for part in value for name in _names(part)] if isinstance(value, list) else []

"""What services share that sell models of their own."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from embedding_pipelines.errors import did_you_mean
from embedding_pipelines.providers.common.http import RemoteModel, RemoteOptions
from embedding_pipelines.providers.common.prices import (
    MODELS,
    PublishedModel,
    choose_dimensions,
    find_published,
)
from embedding_pipelines.space import Space


class HostedOptions(RemoteOptions):
    """One model of a service that sells its own, published or not."""

    default_max_tokens: ClassVar[int]  # of a text, for a model that is not published

    model: str = Field(min_length=1)
    dimensions: int | None = Field(None, ge=1)
    """Shorter vectors than the model's own, where it can give them. Required of a model that is
    not published."""

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        choose_dimensions(self.kind, self.model, self.dimensions)
        return self

    @property
    def price(self) -> float | None:
        if self.usd_per_million_tokens is not None or self.published_model is None:
            return self.usd_per_million_tokens
        return self.published_model.usd_per_million

    @property
    def published_model(self) -> PublishedModel | None:
        return find_published(self.kind, self.model)

    @property
    def size(self) -> int:
        """The number of dimensions of a vector."""
        return choose_dimensions(self.kind, self.model, self.dimensions)

    def known_dimensions(self, home: Path) -> int | None:
        return self.size

    def known_context(self, home: Path) -> int | None:
        return self.model_tokens

    def doubts(self, home: Path) -> Iterator[str]:
        if self.published_model is None and self.sells_published_models:
            published = [name for kind, _, name in map(_split, MODELS) if kind == self.kind]
            near = did_you_mean(self.model, published)
            if near:
                yield f"{self.model!r} is no published model of {self.kind} that is known here.{near}"

    @property
    def sells_published_models(self) -> bool:
        """Whether the service at this address sells the models of the table, and hardly others."""
        return True

    @property
    def requested_size(self) -> int | None:
        """The size to send; None for the model's own, since older models reject any."""
        entry = self.published_model
        return None if entry is not None and self.size == entry.dimensions else self.dimensions

    @property
    def model_tokens(self) -> int:
        """How many tokens of a text the model reads."""
        entry = self.published_model
        return entry.max_tokens if entry else self.default_max_tokens


def _split(name: str) -> tuple[str, str, str]:
    return name.partition(":")


class HostedModel(RemoteModel):
    options: HostedOptions

    def make_space(
        self,
        revision: str,
        prompts: dict[str, str],
        normalized: bool = True,
        dtype: str = "float32",
    ) -> Space:
        return Space(
            provider=self.options.kind,
            model=self.options.model,
            revision=revision,
            dimensions=self.options.size,
            pooling="service",
            prompts=prompts,
            max_tokens=self.options.model_tokens,
            normalized=normalized,
            dtype=dtype,
        )

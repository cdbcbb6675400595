"""`clip`: images and texts in one space, by CLIP, OpenCLIP, SigLIP and SigLIP 2 on this machine."""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from embedding_pipelines.extras import require
from embedding_pipelines.images import Pixels, Resize, recipe
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import (
    EmbeddingModel,
    InputType,
    Limits,
    ProviderOptions,
    Response,
)
from embedding_pipelines.providers.common.local import check_device, model_doubts, model_mistakes
from embedding_pipelines.providers.common.prices import find_published
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.inference.clip import ClipEngine

REQUEST_TEXTS = 4_096
REQUEST_TOKENS, ACCELERATOR_REQUEST_TOKENS = 8_192, 131_072
CONCURRENT_REQUESTS = 2  # one computes while the other is decoded, tokenized or committed
PLACE = "{label}"

Label = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Labels(BaseModel):
    """Names that each image is compared with, by their texts' vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: Annotated[tuple[Label, ...], Field(min_length=1, max_length=10_000)]
    template: str = f"a photo of a {PLACE}"
    top: int = Field(5, ge=1, le=100)  # how many an image gets, or as many as there are

    @field_validator("names")
    @classmethod
    def _check_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} stands twice; write each label once")
        return names

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        if PLACE not in template:
            raise ValueError(f"{template!r} has no {PLACE}, where the label's name goes")
        return template

    @property
    def texts(self) -> list[str]:
        """What stands for each label, in the order of `names`."""
        return [self.template.replace(PLACE, name) for name in self.names]


class ClipModel(EmbeddingModel):
    options: "Clip"
    resources = ("_engine",)

    @functools.cached_property
    def space(self) -> Space:
        config = self._engine.config
        return Space(
            provider=self.options.kind,
            model=self.options.model,
            revision=config.revision,
            dimensions=config.dimensions,
            pooling="none",  # the model's own
            prompts={},
            max_tokens=config.max_tokens,
            normalized=True,
            dtype=self.options.precision,
            pixels=f"{recipe()} {config.pixels}",
        )

    @functools.cached_property
    def limits(self) -> Limits:
        from embedding_pipelines.inference.clip import ACCELERATOR_REQUEST_IMAGES, REQUEST_IMAGES

        on_processor = self._engine.accelerator is None
        return Limits(
            max_tokens=self._engine.config.max_tokens,
            request_tokens=REQUEST_TOKENS if on_processor else ACCELERATOR_REQUEST_TOKENS,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=CONCURRENT_REQUESTS,
            request_images=REQUEST_IMAGES if on_processor else ACCELERATOR_REQUEST_IMAGES,
        )

    @property
    def batch_tokens(self) -> int:
        return min(self._engine.busy_tokens, self.limits.request_tokens)

    @property
    def tokenizer(self) -> "Tokenizer":
        return self._engine.tokenizer

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        return self._engine.config.tokenizer

    @property
    def computed_by(self) -> str:
        return self._engine.computed_by

    @property
    def resize(self) -> Resize:
        return self._engine.config.resize

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        return Response(self._engine.embed_texts(inputs))

    def embed_images(self, pixels: Pixels) -> Vectors:
        return self._engine.embed_images(pixels)

    def release_options(self, folder: Path) -> "Clip":
        """Without the device, as vectors of one precision compare on all."""
        return self.options.model_copy(update={"device": "auto"})

    @once
    def _engine(self) -> "ClipEngine":
        from embedding_pipelines.inference.clip import ClipEngine
        from embedding_pipelines.inference.torch import accelerator
        from embedding_pipelines.inference.weights import model_folder

        # Before a download that nothing here could run.
        require("PIL", "images")
        require("transformers", "local")
        if accelerator() is None:
            require("openvino", "local")
        options = self.options
        folder = model_folder(options.model, options.revision, self.home)
        return ClipEngine(folder, options.precision, options.device, self.cores)


class Clip(ProviderOptions):
    """A local model of images and texts in the format of Hugging Face. How images are resized and
    normalized, and how texts are padded, comes from its own files."""

    model_class = ClipModel

    kind: Literal["clip"] = "clip"
    model: str = "openai/clip-vit-base-patch32"
    revision: str | None = None  # a commit of the hub's repository; None: its main branch
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on processors that have it, float16 on CUDA (bfloat16 where float16 overflows),
    else float32. Its vectors are one space on all machines."""

    device: str = "auto"
    """auto: the best of the machine, cuda before mps before cpu. Else one of these, or cuda:1; a
    run ends where there is none. It is no part of the vectors' space."""

    labels: Labels | None = None
    """What images are labelled with, in the metadata columns `labels` and `label_scores`."""

    _device = field_validator("device")(check_device)

    @property
    def takes_images(self) -> bool:
        return True

    @property
    def metadata_types(self) -> dict[str, str]:
        """Of each image, the names of the best labels, best first, and their cosines."""
        if self.labels is None:
            return {}
        return {"labels": "list[string]", "label_scores": "list[float]"}

    def known_dimensions(self, home: Path) -> int | None:
        entry = find_published(self.kind, self.model)
        return entry.dimensions if entry else None

    def known_context(self, home: Path) -> int | None:
        entry = find_published(self.kind, self.model)
        return entry.max_tokens if entry else None

    def mistakes(self, home: Path) -> Iterator[str]:
        yield from model_mistakes(self.kind, self.model, self.revision, home)

    def doubts(self, home: Path) -> Iterator[str]:
        yield from model_doubts(self.kind, self.model, self.revision, home)

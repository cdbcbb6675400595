"""The space of a vector: all that decides its numbers. Only vectors of one space compare."""

import functools
import json

from pydantic import BaseModel, ConfigDict

from embedding_pipelines.errors import SpaceMismatchError
from embedding_pipelines.schemas import digest


class Space(BaseModel):
    """All that decides what numbers a text becomes; equal ids mean comparable vectors."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    provider: str
    model: str
    revision: str  # digest of the weights, or the service's own version
    dimensions: int
    pooling: str
    prompts: dict[str, str]  # by input type: "document", "query"
    max_tokens: int  # longer texts are cut here
    normalized: bool
    dtype: str  # the precision it was computed in, e.g. "float32"
    codec: str | None = None  # id of the fitted compression; None before it
    # Of a model that takes images: decoder with versions, recipe, resize, scale; None: texts alone.
    pixels: str | None = None

    @functools.cached_property
    def id(self) -> str:
        """128-bit hex digest of the canonical JSON of all fields, without `pixels` where there are
        none: earlier ids stay."""
        fields = self.model_dump()
        if self.pixels is None:
            del fields["pixels"]
        text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return digest(text.encode()).hex()

    def __hash__(self) -> int:
        return hash(self.id)  # pydantic's own fails on the dict in `prompts`

    def with_codec(self, codec_id: str | None) -> "Space":
        """The space of the codes that this codec makes; None: of vectors before compression."""
        # Not `model_copy`: it would carry the cached id along.
        return Space(**{**self.model_dump(), "codec": codec_id})

    @property
    def title(self) -> str:
        """The model for people, e.g. `hf:intfloat/e5-small-v2 (384 dimensions)`."""
        return f"{self.provider}:{self.model} ({self.dimensions} dimensions)"

    def __str__(self) -> str:
        """As `title`, with what tells two spaces of one model apart."""
        codec = f", codec {self.codec[:8]}" if self.codec else ""
        return f"{self.title[:-1]}{codec}, space {self.id[:12]})"


def require_same_space(space: Space, other_id: str, where: str, remedy: str) -> None:
    """Raise SpaceMismatchError unless `other_id` is the id of `space`."""
    if space.id != other_id:
        raise SpaceMismatchError(
            f"{where} holds vectors of space {other_id[:12]}, but this query is of {space}. "
            f"Their numbers cannot be compared. {remedy}"
        )

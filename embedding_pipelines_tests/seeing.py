"""A model of images and texts without weights, whose space is that of colours: a picture is at its mean
colour, a text at the mean of the colours that it names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.images import Pixels, Resize
from embedding_pipelines.providers.base import EmbeddingModel, InputType, Limits, Response
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

COLOURS = {
    "red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230), "yellow": (230, 230, 20),
    "purple": (150, 20, 200), "cyan": (20, 220, 220), "white": (250, 250, 250), "grey": (120, 120, 120),
}  # fmt: skip
RESIZE = Resize(16, False, "box")


class Seeing(EmbeddingModel):
    """Stands for `clip`: `monkeypatch.setattr(Clip, "model_class", Seeing)`. It counts images."""

    seen = 0  # of this model
    limits = Limits(64, 4_000, 100, concurrent_requests=2, request_images=3)
    resize = RESIZE

    @property
    def space(self) -> Space:
        return Space(
            provider="clip",
            model="seeing",
            revision="1",
            dimensions=8,
            pooling="none",
            prompts={},
            max_tokens=64,
            normalized=True,
            dtype="float32",
            pixels="16 squeeze box",
        )

    @property
    def tokenizer(self) -> Any:
        return Hashing().open(Path()).tokenizer

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        rows = []
        for text in inputs:
            named = [COLOURS[word] for word in text.lower().split() if word in COLOURS]
            rows.append(np.mean(named, axis=0) if named else np.full(3, 128.0))
        # What is no colour of it tells texts apart a little.
        own = np.array([[len(text) % 7, len(text) % 5] for text in inputs], float).reshape(-1, 2)
        return Response(_unit(np.array(rows).reshape(-1, 3), own))

    def embed_images(self, pixels: Pixels) -> Vectors:
        self.seen += len(pixels)
        return _unit(pixels.mean(axis=(1, 2)), np.zeros((len(pixels), 2)))


def seeing() -> Seeing:
    return Seeing(Clip(model="seeing"), Path())


def draw(path: Path, *names: str, stripes: int = 0) -> Path:
    """A picture in equal fields of these colours; `stripes` make it another one of like colour."""
    from PIL import Image

    pixels = np.zeros((24, 12 * len(names), 3), np.uint8)
    for number, name in enumerate(names):
        pixels[:, 12 * number : 12 * (number + 1)] = COLOURS[name]
    pixels[: stripes % 24, 0] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _unit(colours: Any, own: Any) -> Vectors:
    rows = np.pad(colours / 128 - 1, ((0, 0), (0, 5))).astype(np.float32)
    rows[:, 3:5] = own / 50
    rows[:, 7] = 0.2
    vectors: Vectors = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors

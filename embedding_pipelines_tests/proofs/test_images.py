"""Photographs through the provider clip: the vectors of plain transformers, and a retrieval that was
learned, through the project's own search."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.clip_training import learn_drawings
from embedding_pipelines.images import decode, prepare
from embedding_pipelines.inference.clip import ClipEngine
from embedding_pipelines_tests.clips import plain_images, tiny_clip, tiny_siglip
from embedding_pipelines_tests.corpora import public
from embedding_pipelines_tests.drawn import drawing, encoded

FORMATS: dict[str, dict[str, Any]] = {
    "PNG": {}, "BMP": {}, "TIFF": {}, "PCX": {}, "WEBP": {"lossless": True},
    "JPEG": {"quality": 80, "subsampling": 2}, "AVIF": {"quality": 70},
}  # fmt: skip
MODES = ("1", "L", "P", "RGB", "CMYK", "I;16")
BATCHES = (1, 2, 7, 33, 64)


def photographs() -> list[bytes]:
    """200 files: those at hand, else drawn ones."""
    folder = public("flickr200")
    if folder is not None:
        return [path.read_bytes() for path in sorted((folder / "images").iterdir())]
    return [encoded(drawing(seed, 200, 130), "JPEG") for seed in range(200)]


def in_many_formats(files: list[bytes]) -> list[bytes]:
    """Some of them in every format, and in every mode that a format has."""
    made = []
    for data, (kind, options) in zip(files, FORMATS.items(), strict=False):
        made.append(encoded(decode(data), kind, **options))
    for data, mode in zip(files, MODES, strict=False):
        file, image = io.BytesIO(), Image.fromarray(decode(data))
        grey = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) << 8)
        (grey if mode == "I;16" else image.convert(mode)).save(file, "TIFF")
        made.append(file.getvalue())
    animated = io.BytesIO()
    frames = [Image.fromarray(decode(data)).convert("P") for data in files[:3]]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    return [*made, animated.getvalue()]


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny_clip, tiny_siglip])
def test_vectors_are_those_of_transformers_for_photographs_in_all_formats(
    make: Any, tmp_path: Path
) -> None:
    folder, files = make(tmp_path / "model"), photographs()
    files += in_many_formats(files)
    expected = plain_images(folder, [Image.fromarray(decode(data)) for data in files])
    # What Pillow alone makes of the opaque ones, without our recipe.
    plain = [Image.open(io.BytesIO(data)).convert("RGB") for data in files[:50]]
    assert (plain_images(folder, plain) * expected[:50]).sum(axis=1).min() > 0.99999
    for precision, least in (("float32", 0.99999), ("auto", 0.9999)):
        engine = ClipEngine(folder, precision, "cpu")  # type: ignore[arg-type]
        squares = np.stack([prepare(decode(data), engine.config.resize) for data in files])
        for size in BATCHES:
            parts = [
                engine.embed_images(squares[at : at + size]) for at in range(0, len(files), size)
            ]
            cosines = (np.concatenate(parts) * expected).sum(axis=1)
            assert cosines.min() >= least, (precision, size, int(cosines.argmin()))


@pytest.mark.slow
def test_a_model_that_was_trained_is_searched_far_above_chance(home: Path) -> None:
    """Drawings of a shape in a colour; those that are searched are of pairs that were not trained."""
    figures = learn_drawings(home, 1_500, 200)["pairs_left_out"]
    print(figures)
    assert figures["recall_at_10"] > 5 * figures["chance_at_10"]
    assert figures["recall_at_1"] > 10 * figures["chance_at_1"]

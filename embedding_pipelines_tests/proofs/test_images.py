"""Photographs through the provider clip: the vectors of plain transformers, and a retrieval that is
learned from the pipeline's own vectors, through its own search."""

import io
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.images import learn, ranks_of
from embedding_pipelines.explore.table import load_table
from embedding_pipelines.images import decode, prepare
from embedding_pipelines.inference.clip import ClipEngine
from embedding_pipelines.search import Searcher
from embedding_pipelines_tests.chain import run_steps, write_pipeline
from embedding_pipelines_tests.clips import plain_images, tiny_clip, tiny_siglip
from embedding_pipelines_tests.corpora import public
from embedding_pipelines_tests.drawn import drawing, encoded
from embedding_pipelines_tests.seeing import COLOURS, draw

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
def test_retrieval_is_learned_from_the_pipelines_own_vectors(home: Path) -> None:
    """Pictures of two colours, one beside or above the other, and a sentence for each. A linear map
    from texts to images is fitted to half of them; the other half is found by it."""
    tiny_clip(home / "model")
    lines, texts = ["name,words,fold"], dict[str, str]()
    random = np.random.default_rng(0)
    for number, (one, other, place) in enumerate(product(COLOURS, COLOURS, ("beside", "above"))):
        if one == other:
            continue
        path = draw(home / "photos" / f"{number}.png", one, other)
        if place == "above":
            Image.open(path).transpose(Image.Transpose.ROTATE_270).save(path)
        texts[path.name] = f"a {one} field {place} a {other} one"
        lines.append(f"{path.name},{texts[path.name]},{random.choice(['train', 'test'])}")
    (home / "captions.csv").write_text("\n".join(lines), encoding="utf-8")
    captions = "{path: captions.csv, file: name, text: words, metadata: [fold]}"
    write_pipeline(
        home,
        "p",
        f"source: {{kind: images, path: photos/, captions: {captions}}}\n"
        "model: {provider: clip, model: model, precision: float32}\npartitions: 2\n",
    )
    run_steps(home, "p")
    rows = load_table(home, "p")
    train = rows[rows["fold"] == "train"]
    with Searcher(home, "p") as searcher:
        known = searcher.model.embed(list(train["text"]), "query").vectors
        translate = learn(known, np.stack(list(train["vector"])))
        held = rows[rows["fold"] == "test"]
        queries = searcher.model.embed(list(held["text"]), "query").vectors
        ranks = ranks_of(searcher, translate(queries), list(held["document_id"]), "fold = 'test'")
        plainly = ranks_of(searcher, queries, list(held["document_id"]), "fold = 'test'")
    chance = 10 / len(held)
    found = float(np.mean(ranks < 10))
    print(f"recall@10 {found:.2f} (chance {chance:.2f}, unlearned {np.mean(plainly < 10):.2f})")
    assert found > 3 * chance

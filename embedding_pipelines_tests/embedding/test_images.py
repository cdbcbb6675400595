"""Images through the cache to the model: by their pixels, loaded ahead, and only while they are the
ones that their documents were made of."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pyarrow as pa
import pytest

from embedding_pipelines.embedding.batch import EmbeddedBatch
from embedding_pipelines.embedding.budget import Usage
from embedding_pipelines.embedding.cache import IN_MEMORY, EmbeddingCache
from embedding_pipelines.embedding.embed import embed
from embedding_pipelines.embedding.images import ImageLoader
from embedding_pipelines.errors import SourceError, SourceGoneError
from embedding_pipelines.images import Pixels, decode, digest
from embedding_pipelines.providers.base import InputType, Response
from embedding_pipelines.providers.clip import Clip
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.seeing import RESIZE, Seeing


class Waiting(Seeing):
    """Has each request wait until it may be computed."""

    may_go = threading.Event()

    def embed_images(self, pixels: Pixels) -> Vectors:
        self.may_go.wait(30)
        return super().embed_images(pixels)


class Reading(Seeing):
    """Keeps the texts that it is sent."""

    texts: ClassVar[list[str]] = []

    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        self.texts.extend(inputs)
        return super().embed(inputs, input_type)


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageLoader]:
    folder = tmp_path_factory.getbasetemp()

    def read(name: str) -> Path | bytes:
        if name.endswith("gone"):
            raise SourceGoneError("the object is gone")
        if name.endswith("away"):
            raise SourceError("s3://photos: it does not answer")
        return folder / name if name.startswith("/") else bytes.fromhex(name)

    with ImageLoader(read, RESIZE) as loader:
        yield loader


def drawn(path: Path, *colour: int) -> tuple[str, str]:
    """The name and digest of a picture of one colour."""
    from PIL import Image

    Image.new("RGB", (20, 10), colour).save(path, "PNG")
    return str(path), digest(decode(path.read_bytes()))


def opened(kind: type[Seeing]) -> Any:
    return kind(Clip(model="seeing"), Path())


def rows(images: Sequence[tuple[str | None, str | None]], texts: Sequence[str] = ()) -> Any:
    return pa.RecordBatch.from_pydict(
        {
            "text": [*["a caption"] * len(images), *texts],
            "uri": pa.array([*(name for name, _ in images), *[None] * len(texts)], pa.string()),
            "image": pa.array([*(each for _, each in images), *[None] * len(texts)], pa.string()),
            "tokens": [*[0] * len(images), *[3] * len(texts)],
        }
    )


def run(
    model: Seeing,
    loader: ImageLoader,
    batches: Sequence[Any],
    cache: EmbeddingCache,
    done: list[int] | None = None,
) -> list[EmbeddedBatch]:
    advance = ([] if done is None else done).append
    return list(embed(batches, model, cache, "document", advance, loader=loader))


def test_an_image_is_embedded_once_whatever_its_file_is_called(
    tmp_path: Path, loader: ImageLoader
) -> None:
    model, done = opened(Reading), [0]
    red, blue = drawn(tmp_path / "red.png", 200, 10, 10), drawn(tmp_path / "blue.png", 10, 10, 200)
    again = drawn(tmp_path / "renamed.png", 200, 10, 10)
    assert again[1] == red[1]
    with EmbeddingCache(IN_MEMORY) as cache:
        first, second = run(
            model, loader, [rows([red, blue, again], ["a text"]), rows([again])], cache, done
        )
        assert model.seen == 2
        assert model.texts == ["a text"]  # captions are no part of the vector
        assert np.array_equal(first.vectors[0], first.vectors[2])
        assert np.array_equal(first.vectors[0], second.vectors[0])
        assert not np.array_equal(first.vectors[0], first.vectors[1])
        assert (first.usage.embedded, first.usage.embedded_images) == (3, 2)
        assert (first.usage.embedded_tokens, sum(done)) == (3, 2 + 1 + 3 + 1)
        (third,) = run(model, loader, [rows([again, blue])], cache)
        assert (model.seen, third.usage.cache_hits) == (2, 2)
        # Its key is of pixels, so no text has it.
        assert cache.get(red[1], model) is None


def test_what_is_not_the_image_any_more_is_rejected_alone(
    tmp_path: Path, loader: ImageLoader
) -> None:
    good = drawn(tmp_path / "good.png", 1, 2, 3)
    changed = drawn(tmp_path / "changed.png", 4, 5, 6)
    drawn(tmp_path / "changed.png", 7, 8, 9)
    broken = (str(tmp_path / "broken.png"), "0" * 32)
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    missing, gone = (str(tmp_path / "missing.png"), "1" * 32), ("gone", "2" * 32)
    with EmbeddingCache(IN_MEMORY) as cache:
        images = [changed, broken, good, missing, gone]
        (part,) = run(opened(Seeing), loader, [rows(images)], cache)
    assert np.isfinite(part.vectors).all(axis=1).tolist() == [False, False, True, False, False]
    assert "changed.png: the image has changed since" in part.rejected[0]
    assert "broken.png: the content is no image" in part.rejected[1]
    assert "missing.png: the file is gone" in part.rejected[3]
    assert part.rejected[4].startswith("gone: the object is gone. Run again")
    assert part.usage.rejected == 4


def test_a_bucket_or_disk_that_does_not_answer_ends_the_run_and_rejects_nothing(
    tmp_path: Path, loader: ImageLoader
) -> None:
    good = drawn(tmp_path / "good.png", 1, 2, 3)
    folder = tmp_path / "no_file"
    folder.mkdir()
    for name, words in (("away", "does not answer"), (str(folder), "Is a directory. See to that")):
        with EmbeddingCache(IN_MEMORY) as cache, pytest.raises(SourceError, match=words):
            run(opened(Seeing), loader, [rows([good, (name, "3" * 32)])], cache)


def test_the_next_images_are_loaded_while_the_model_computes(
    tmp_path: Path, loader: ImageLoader
) -> None:
    model, loaded = opened(Waiting), list[str]()

    def load(name: str, expected: str) -> Any:
        loaded.append(name)
        if len(loaded) == 9:  # of three requests, and none has ended
            Waiting.may_go.set()
        return loader.load(name, expected)

    images = [drawn(tmp_path / f"{number}.png", number, 0, 0) for number in range(12)]
    watched = cast(ImageLoader, SimpleNamespace(load=load))
    with EmbeddingCache(IN_MEMORY) as cache:
        (part,) = run(model, watched, [rows(images)], cache)
    assert Waiting.may_go.is_set()
    assert np.isfinite(part.vectors).all()
    assert isinstance(part.usage, Usage)

"""CLIP and SigLIP: the vectors of plain transformers, whatever the batch, and a model's own resize."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.images import Resize, prepare
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import Backend, OutOfMemory
from embedding_pipelines.inference.clip import ClipEngine, ClipTorch, ImageBatch, describe
from embedding_pipelines.inference.clip import load as load_model
from embedding_pipelines.vectors import Vectors
from embedding_pipelines_tests.clips import (
    DIMENSIONS,
    SIZE,
    plain_images,
    plain_texts,
    tiny_clip,
    tiny_siglip,
)

TEXTS = ["", "a photo of a cat", "Two children play, in the SNOW!", "word " * 200]
SHAPES = [(90, 70), (64, 200), (33, 64), (64, 64), (500, 31)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_siglip(tmp_path_factory.mktemp("siglip"))


def pictures() -> list[np.ndarray]:
    """Coarse noise, each of another tint."""
    random = np.random.default_rng(0)
    tints = random.uniform(0, 1, (len(SHAPES), 3))
    return [
        (random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)) * tint)
        .astype(np.uint8)
        .repeat(8, axis=0)
        .repeat(8, axis=1)[:height, :width]
        for (height, width), tint in zip(SHAPES, tints, strict=True)
    ]


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_vectors_are_those_of_transformers_in_any_batch(
    family: str, request: pytest.FixtureRequest
) -> None:
    from PIL import Image

    folder = request.getfixturevalue(family)
    images = [Image.fromarray(each) for each in pictures()]
    expected_images, expected_texts = plain_images(folder, images), plain_texts(folder, TEXTS)
    for precision, least in (("float32", 0.999999), ("auto", 0.9999)):
        engine = ClipEngine(folder, precision)  # type: ignore[arg-type]
        squares = np.stack([prepare(each, engine.config.resize) for each in pictures()])
        for part in (slice(0, 1), slice(0, None), slice(None, None, -1)):
            cosines = (engine.embed_images(squares[part]) * expected_images[part]).sum(axis=1)
            assert cosines.min() > least
            texts = TEXTS[part]
            assert (engine.embed_texts(texts) * expected_texts[part]).sum(axis=1).min() > least
        assert engine.embed_images(squares[:0]).shape == (0, engine.config.dimensions)
        assert engine.embed_texts([]).shape == (0, engine.config.dimensions)
    assert np.ptp(expected_images @ expected_images.T) > 0.1  # there was something to tell apart


def test_what_is_compiled_in_one_precision_is_not_read_in_another(
    siglip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    squares = np.stack([prepare(each, Resize(SIZE, False, "box")) for each in pictures()])
    exact = ClipEngine(siglip, "float32", "cpu").embed_images(squares)
    for precision in ("auto", "float32", "auto"):
        engine = ClipEngine(siglip, precision, "cpu")  # type: ignore[arg-type]
        assert (engine.embed_images(squares) * exact).sum(axis=1).min() > 0.9999
    assert np.allclose(ClipEngine(siglip, "float32", "cpu").embed_images(squares), exact, atol=1e-6)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_torch_computes_the_same_where_there_is_an_accelerator(
    family: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(family)
    squares = np.stack([prepare(each, Resize(SIZE, True, "box")) for each in pictures()])
    expected = ClipEngine(folder, "float32", "cpu")
    monkeypatch.setattr(_torch, "accelerator", lambda: "cpu")
    engine = ClipEngine(folder, "bfloat16")
    assert isinstance(engine.vision, ClipTorch)
    one, other = engine.embed_images(squares), expected.embed_images(squares)
    assert (one * other).sum(axis=1).min() > 0.999
    assert (engine.embed_texts(TEXTS) * expected.embed_texts(TEXTS)).sum(axis=1).min() > 0.999
    assert engine.computed_by.endswith("cpu, bfloat16")


class Small(Backend):
    """Has room for three images."""

    name, precision, batch_tokens, in_flight, pads = "a small device", "float32", 8, 2, False

    def start(self, batch: Any) -> Any:
        (pixels,) = batch.padded()
        if len(pixels) > 3:
            raise OutOfMemory("no room")
        return pixels

    def finish(self, handle: Any) -> Vectors:
        return np.repeat(handle[:, 0, 0, :1].astype(np.float32), DIMENSIONS, axis=1)


def test_images_without_room_are_halved(clip: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine = ClipEngine(clip, "float32")
    engine.__dict__["vision"] = Small()
    squares = np.zeros((20, SIZE, SIZE, 3), np.uint8)
    squares[:, 0, 0, 0] = np.arange(20)
    assert engine.embed_images(squares)[:, 0].tolist() == list(range(20))
    assert "out of memory on a small device; from now on 3 images at a time" in caplog.text


def test_what_overflows_in_float16_is_computed_in_a_wider_precision(
    clip: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Overflows(Small):
        precision = "float16"

        def finish(self, handle: Any) -> Vectors:
            return np.full((len(handle), DIMENSIONS), np.inf, np.float32)

    engine = ClipEngine(clip, "float32")
    engine.__dict__["vision"] = Overflows()
    monkeypatch.setattr(_torch, "wider_precision", lambda: "float32")
    monkeypatch.setattr(_torch, "accelerator", lambda: "cpu")
    vectors = engine.embed_images(np.zeros((2, SIZE, SIZE, 3), np.uint8))
    assert np.isfinite(vectors).all()
    assert "too large for float16; from now on in float32" in caplog.text
    assert engine.vision.precision == "float32"


def test_torchvision_has_no_part_in_a_vector(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers resizes by it where it is installed, to other pixels."""

    def vectors() -> Vectors:
        engine = ClipEngine(clip, "float32", "cpu")
        return engine.embed_images(
            np.stack([prepare(each, engine.config.resize) for each in pictures()])
        )

    uses = list[str]()

    class Torchvision(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("__"):
                uses.append(name)
            raise AttributeError(name)

    without = vectors()
    monkeypatch.setitem(sys.modules, "torchvision", Torchvision("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.transforms", Torchvision("transforms"))
    np.testing.assert_array_equal(vectors(), without)
    assert not uses


def test_a_torchvision_of_another_torch_is_named(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel

    def load(*_: Any, **__: Any) -> Any:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'CLIPModel'.") from error

    monkeypatch.setattr(AutoModel, "from_pretrained", load)
    with pytest.raises(ProviderError, match=r"operator torchvision::nms.*uninstall it"):
        load_model(copied)


def test_pixels_of_another_size_are_refused(clip: Path) -> None:
    with pytest.raises(ValueError, match=r"takes pixels uint8\[n, 64, 64, 3\]; these are"):
        ClipEngine(clip, "float32").embed_images(np.zeros((1, 32, 32, 3), np.uint8))
    assert ImageBatch(np.zeros((3, 2, 2, 3), np.uint8)).take(np.array([0])).pixels.shape[0] == 1


def written(folder: Path, **settings: Any) -> Path:
    path = folder / "preprocessor_config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(values), encoding="utf-8")
    return folder


@pytest.fixture
def copied(clip: Path, tmp_path: Path) -> Path:
    """A model of its own, of links but for the file that says how images are made."""
    for path in clip.iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = tmp_path / "preprocessor_config.json"
    content = settings.read_bytes()
    settings.unlink()
    settings.write_bytes(content)
    return tmp_path


def test_the_preprocessor_of_the_model_decides_on_the_pixels(copied: Path) -> None:
    before = describe(copied)[1]
    assert (before.resize, before.scale) == (Resize(SIZE, True, "bicubic"), 1 / 255)
    old = written(copied, size=SIZE, crop_size=SIZE, resample=1, image_mean=[0.1, 0.2, 0.3])
    after = describe(old)[1]  # as the first files of CLIP were written
    assert after.resize == Resize(SIZE, True, "lanczos")
    assert after.mean == (0.1, 0.2, 0.3)
    assert after.pixels != before.pixels
    square = {"height": SIZE, "width": SIZE}
    plain = describe(written(copied, size=square, do_rescale=False, do_normalize=False))[1]
    assert (plain.crop, plain.scale, plain.mean, plain.std) == (False, 1.0, (0.0,) * 3, (1.0,) * 3)
    values = json.loads((copied / "preprocessor_config.json").read_text(encoding="utf-8"))
    (copied / "preprocessor_config.json").unlink()
    with pytest.raises(ProviderError, match=r"there is no preprocessor_config\.json, which says"):
        describe(copied)
    nested = {"image_processor": values, "processor_class": "CLIPProcessor"}
    (copied / "processor_config.json").write_text(json.dumps(nested), encoding="utf-8")
    assert describe(copied)[1] == plain


@pytest.mark.parametrize(
    "settings",
    [
        {"size": {"shortest_edge": 80}},
        {"crop_size": {"height": 60, "width": 60}},
        {"do_resize": False},
        {"do_center_crop": False},
        {"size": {"longest_edge": SIZE, "shortest_edge": 16}},
    ],
)
def test_a_resize_that_is_not_done_here_is_refused(copied: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match="takes squares of 64 pixels, and its preprocessor"):
        describe(written(copied, **settings))


def test_a_model_of_another_family_is_refused(copied: Path) -> None:
    config = copied / "config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    config.unlink()
    config.write_text(json.dumps(values | {"model_type": "altclip"}), encoding="utf-8")
    with pytest.raises(ProviderError, match=r"model_type is 'altclip'.*types clip and siglip"):
        describe(copied)


def test_a_model_inside_one_of_sentence_transformers_is_taken(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "0_CLIPModel").symlink_to(clip)
    assert ClipEngine(tmp_path, "float32").config == describe(clip)[1]
    logging.getLogger("transformers").setLevel(logging.WARNING)

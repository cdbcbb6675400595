"""Golden images: what they cover, what reproduces, and what is refused."""

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from embedding_pipelines.errors import BundleError
from embedding_pipelines.images import Resize
from embedding_pipelines.serving.golden_images import least_cosine, write_golden_images
from embedding_pipelines_tests.seeing import Seeing, seeing


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    path = tmp_path / "golden_images.parquet"
    write_golden_images(path, seeing())
    return path


def files_in(golden: Path) -> list[bytes]:
    files: list[bytes] = pq.read_table(golden)["image"].to_pylist()
    return files


@pytest.mark.usefixtures("decoded_here")
def test_they_are_small_and_have_all_modes_and_shapes(golden: Path, tmp_path: Path) -> None:
    pictures = [Image.open(io.BytesIO(data)) for data in files_in(golden)]
    assert {picture.format for picture in pictures} == {"PNG"}
    assert {picture.mode for picture in pictures} == {"RGB", "RGBA", "L", "I;16"}
    assert min(picture.width / picture.height for picture in pictures) < 0.1
    assert max(picture.width / picture.height for picture in pictures) == 10
    assert min(picture.width for picture in pictures) == 16
    assert golden.stat().st_size < 300_000
    write_golden_images(tmp_path / "again.parquet", seeing())
    assert files_in(tmp_path / "again.parquet") == files_in(golden)


def test_the_same_model_reproduces(golden: Path) -> None:
    assert least_cosine(golden, seeing()) == pytest.approx(1)


@pytest.mark.usefixtures("decoded_here")
@pytest.mark.parametrize("resize", [Resize(16, False, "nearest"), Resize(16, True, "box")])
def test_another_way_to_resize_is_seen(
    golden: Path, resize: Resize, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Seeing, "resize", resize)
    assert least_cosine(golden, seeing()) < 0.999


@pytest.mark.usefixtures("decoded_here")
def test_another_tower_is_seen(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Seeing.embed_images

    def one_is_none(model: Seeing, pixels: Any) -> Any:
        vectors = true(model, pixels).copy()
        vectors[3] = np.nan
        return vectors

    monkeypatch.setattr(Seeing, "embed_images", one_is_none)
    assert least_cosine(golden, seeing()) == 0


def test_what_is_none_is_refused(golden: Path) -> None:
    table = pq.read_table(golden)
    bomb = _bomb()
    for files, words in (
        ([b"GIF89a"], "cannot be read: .*no image"),
        ([encoded_as("JPEG")], "no small PNG"),
        ([b"\x89PNG" + bytes(2 << 20)], "no small PNG"),
        ([bomb], "cannot be read"),
    ):
        part = table.slice(0, 1).set_column(
            0, table.schema.field(0), [pa.array(files, pa.binary())]
        )
        pq.write_table(part, golden)
        with pytest.raises(BundleError, match=words):
            least_cosine(golden, seeing())
    for other in (table.slice(0, 0), pa.concat_tables([table] * 9), table.drop_columns(["vector"])):
        pq.write_table(other, golden)
        with pytest.raises(BundleError, match="not as this model has them"):
            least_cosine(golden, seeing())
    golden.unlink()
    with pytest.raises(BundleError, match="Bundle the pipeline anew"):
        least_cosine(golden, seeing())


def encoded_as(kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind)
    return file.getvalue()


def _bomb() -> bytes:
    """A PNG of 100,000 x 100,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = (100_000).to_bytes(4, "big")
    head = chunk(b"IHDR", size + size + bytes([8, 2, 0, 0, 0]))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )

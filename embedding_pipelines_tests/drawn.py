"""Images that tests draw, and what damages them."""

import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embedding_pipelines.images import Look


def drawing(seed: int, width: int = 64, height: int = 48) -> np.ndarray:
    """[height, width, 3] uint8: soft patches, other ones for each seed."""
    fields = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(fields).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file; JPEG loses some of the pixels, WEBP only without `lossless`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def die(data: bytes) -> Look:
    """In the place of `images.look`. Here, since the processes that call it import its module."""
    if b"die" in data:
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does for memory, or a decoder's crash
    return Look("png", 1, 1, data.decode(), "0" * 16)

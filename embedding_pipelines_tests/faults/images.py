"""Gives the source `images` files that are damaged, disguised or made to burst, among good ones.

    python -m embedding_pipelines_tests.faults.images 200

Each file has to become a document with the right pixels, or one rejected row with a sentence; the good
ones come through in any case, and no process may take more memory than an image of the largest size.
"""

import argparse
import io
import struct
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

import psutil
from PIL import Image
from pillow_heif import register_heif_opener

from embedding_pipelines import images
from embedding_pipelines.sources.base import ReadLog, fetched
from embedding_pipelines_tests.contracts_sources import make
from embedding_pipelines_tests.drawn import drawing, encoded, write

MOST_MB = 1_500  # of a process that decodes, at 64 million pixels with transparency
MOST_SECONDS = 60.0  # for one file
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PCX", "HEIF")
Fate = Literal["read", "rejected", "either"]
Hostile = tuple[Fate, str, bytes]  # what has to become of it, its ending, its content


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(width: int, height: int, data: bytes, *chunks: bytes, depth: int = 8) -> bytes:
    """Grey, of rows that are compressed already."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    body = b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


def _zeros(size: int) -> bytes:
    """As many zeros, compressed, without having them at once."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(min(1 << 20, size - at))) for at in range(0, size, 1 << 20)]
    return b"".join(parts) + packer.flush()


def _good(chance: Random, kind: str = "") -> bytes:
    return encoded(drawing(chance.randrange(1000)), kind or chance.choice(FORMATS))


def _cut(chance: Random) -> Hostile:
    kind = chance.choice(FORMATS)
    data = _good(chance, kind)
    keep = int(len(data) * chance.uniform(0.02, 0.6))
    return "rejected" if kind != "TIFF" else "either", kind.lower(), data[:keep]


def _flipped(chance: Random) -> Hostile:
    kind = chance.choice(FORMATS)
    data = bytearray(_good(chance, kind))
    for _ in range(chance.randint(1, 30)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return "either", kind.lower(), bytes(data)


def _misnamed(chance: Random) -> Hostile:
    return "read", chance.choice(("png", "jpg", "gif", "tiff")), _good(chance)


def _no_image(chance: Random) -> Hostile:
    contents = (
        *(b"", b"\0", bytes(5000), b"<html><body>no</body></html>", b"PK\3\4" + bytes(200)),
        *(b"%PDF-1.7\n%EOF", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\nshowpage\n"),
        *(b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", b"\xff\xd8\xff"),
        *(b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\0\0\0\0WEBP", b"II*\0\x08\0\0\0", b"BM"),
        chance.randbytes(3000),
    )
    return "rejected", chance.choice(("png", "jpg", "webp")), chance.choice(contents)


def _huge(chance: Random) -> Hostile:
    """A header with a size that no file of these bytes holds, or that bursts."""
    side = chance.choice((9_000, 65_500, 2**31 - 1))
    short = min(side, 65_500)
    jpeg = bytearray(_good(chance, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", short, short)
    bmp = bytearray(_good(chance, "BMP"))
    bmp[18:26] = struct.pack("<ii", side, side)
    gif = bytearray(_good(chance, "GIF"))
    gif[6:10] = struct.pack("<HH", short, short)
    tiff = io.BytesIO()
    Image.new("L", (4, 4)).save(tiff, "TIFF")
    wide = tiff.getvalue().replace(
        struct.pack("<HHII", 256, 4, 1, 4), struct.pack("<HHII", 256, 4, 1, side)
    )
    wide = wide.replace(struct.pack("<HHII", 257, 4, 1, 4), struct.pack("<HHII", 257, 4, 1, side))
    return (
        "rejected",
        "png",
        chance.choice(
            (_png(side, side, _zeros(1 << 20)), bytes(jpeg), bytes(bmp), bytes(gif), wide)
        ),
    )


def _bomb(chance: Random) -> Hostile:
    """Few bytes that are many: pixels, within the limit and beyond, and metadata."""
    wide = chance.randrange(4)
    if wide == 0:  # all that may be: 64 million pixels in 64 kB
        return "read", "png", _png(8_000, 8_000, _zeros(8_001 * 8_000))
    if wide == 1:  # black and white: 900 million pixels
        return "rejected", "png", _png(30_000, 30_000, _zeros(1 << 20), depth=1)
    profile = _chunk(b"iCCP", b"x\0\0" + _zeros(70 << 20))
    text = _chunk(b"zTXt", b"x\0\0" + _zeros(70 << 20))
    row = zlib.compress(b"\0\1\2")
    return "either", "png", _png(2, 1, row, profile if wide == 2 else text)


def _two_at_once(chance: Random) -> Hostile:
    """A picture that is an archive, a page or a program too."""
    tails = (b"PK\3\4" + bytes(500), b"<script>alert(1)</script>", b"#!/bin/sh\nexit 1\n")
    return "read", "jpg", _good(chance, chance.choice(("PNG", "JPEG"))) + chance.choice(tails)


def _odd_mode(chance: Random) -> Hostile:
    file, kind = io.BytesIO(), chance.choice(("PNG", "TIFF"))
    Image.fromarray(drawing(chance.randrange(99))).convert("1").save(file, kind)
    return "read", kind.lower(), file.getvalue()


def _broken_profile(chance: Random) -> Hostile:
    file, kind = io.BytesIO(), chance.choice(("JPEG", "TIFF"))
    profile = chance.choice((b"x", bytes(200), chance.randbytes(4000)))
    image = Image.fromarray(drawing(chance.randrange(99))).convert("CMYK")
    image.save(file, kind, icc_profile=profile)
    return "read", kind.lower(), file.getvalue()


def _broken_metadata(chance: Random) -> Hostile:
    kind = chance.choice(("PNG", "WEBP", "JPEG"))
    exif = b"Exif\0\0" + chance.choice((b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff", b""))
    data = encoded(drawing(chance.randrange(99)), kind, exif=exif + chance.randbytes(50))
    return "read", kind.lower(), data


def _ring(chance: Random) -> Hostile:
    """A TIFF whose directory is the next one to itself."""
    data = bytearray(_good(chance, "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    (entries,) = struct.unpack("<H", data[start : start + 2])
    data[start + 2 + 12 * entries : start + 6 + 12 * entries] = struct.pack("<I", start)
    return "either", "tiff", bytes(data)


KINDS: dict[str, Callable[[Random], Hostile]] = {
    "cut short": _cut,
    "bits flipped": _flipped,
    "misnamed": _misnamed,
    "no image": _no_image,
    "huge": _huge,
    "bomb": _bomb,
    "two at once": _two_at_once,
    "black and white": _odd_mode,
    "broken profile": _broken_profile,
    "broken metadata": _broken_metadata,
    "ring": _ring,
}


@dataclass
class Outcome:
    """What became of all files."""

    fates: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind of fault, read/rejected
    wrong: list[str] = field(default_factory=list)
    most_mb: int = 0  # of one process that decodes
    seconds: float = 0.0


class Memory:
    """The most memory that a child of this process has had, looked at every 20 ms."""

    def __init__(self) -> None:
        self.most_mb = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        own = process.cmdline()
        while not self._end.wait(0.02):
            for child in process.children(recursive=True):
                try:
                    if child.cmdline() == own:  # between fork and exec its memory is this process's
                        continue
                    self.most_mb = max(self.most_mb, child.memory_info().rss >> 20)
                except psutil.Error:  # it has just ended
                    continue


def attack(folder: Path, count: int, seed: int = 0, kinds: tuple[str, ...] = ()) -> Outcome:
    """Write `count` hostile files and a good one before each tenth, and read all as a run does."""
    register_heif_opener()  # which writes HEIC, too
    names = kinds or tuple(KINDS)
    fates: dict[str, tuple[str, Fate]] = {}
    good: dict[str, str] = {}
    for number in range(count):
        kind = names[number % len(names)]
        fate, suffix, data = KINDS[kind](Random(f"{seed} {number}"))
        name = f"{number:05}.{suffix}"
        write(folder / name, data)
        fates[name] = kind, fate
        if number % 10 == 0:
            pixels = drawing(number)
            write(folder / f"{number:05}_good.png", encoded(pixels))
            good[f"{number:05}_good.png"] = images.digest(pixels)
    outcome, read, rejected = Outcome(), dict[str, str](), dict[str, str]()
    start = time.monotonic()

    def reject(rejection: object) -> None:
        rejected[rejection.file] = rejection.reason  # type: ignore[attr-defined]

    source = make("images", "*")
    with (
        Memory() as memory,
        fetched(source.files(folder)) as files,
        source.reading(files) as readings,
    ):
        for file, reads in readings:
            began = time.monotonic()
            for batch in reads(ReadLog(reject)):
                read[file.name] = batch["image"][0].as_py()
            if time.monotonic() - began > 2 * MOST_SECONDS:
                outcome.wrong.append(f"{file.name}: took too long")
    outcome.seconds, outcome.most_mb = time.monotonic() - start, memory.most_mb
    for name, (kind, fate) in fates.items():
        became = "read" if name in read else "rejected" if name in rejected else "lost"
        outcome.fates[kind, became] += 1
        if became == "lost" or fate not in ("either", became):
            reason = rejected.get(name, "")
            outcome.wrong.append(f"{name}: {kind} was {became}, not {fate} {reason}")
        if became == "rejected" and ("\n" in rejected[name] or len(rejected[name]) > 300):
            outcome.wrong.append(f"{name}: {kind}: no sentence: {rejected[name][:500]!r}")
    outcome.wrong += [
        f"{name}: a good one" for name, value in good.items() if read.get(name) != value
    ]
    if memory.most_mb > MOST_MB:
        outcome.wrong.append(f"a process took {memory.most_mb} MB")
    return outcome


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        outcome = attack(Path(folder), options.count, options.seed)
    for (kind, became), count in sorted(outcome.fates.items()):
        print(f"{kind:<16} {became:<9} {count}")
    print(f"most memory of a process: {outcome.most_mb} MB; {outcome.seconds:.0f} s")
    print("\n".join(outcome.wrong) or "all right")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

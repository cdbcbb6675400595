"""Files of word vectors: word2vec's text and binary formats, GloVe's and fastText's text, and
gensim's KeyedVectors.

Each file is read once, as a stream, into a folder of the user's cache that its content's digest
names: `vectors.f32`, float32[words, d], to be mapped into memory, and `words.json`.
"""

import glob
import gzip
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
from platformdirs import user_cache_path

from embedding_pipelines.errors import ProviderError, error_lines
from embedding_pipelines.extras import need
from embedding_pipelines.files import fill_folder
from embedding_pipelines.inference.backend import damage_error
from embedding_pipelines.inference.weights import file_sha256, join_sha256
from embedding_pipelines.vectors import Vectors

CACHE_LAYOUT = "1"  # raise it when the files in the cache change
ALL_WORDS = "words.json"
LINE_BYTES = 1 << 20  # 4,096 numbers take 50 KB as text
MAX_DIMENSIONS = 1 << 16
PICKLE = b"\x80"  # its first byte, of protocol 2 and later
WORD_BYTES = 1 << 14  # a binary file with a longer word is none


@dataclass(frozen=True)
class WordVectors:
    """The vectors of a file, float32[words, d], mapped into memory, and the row of each word."""

    path: Path
    sha256: str  # of the file's content
    rows: dict[str, int]
    vectors: Vectors

    def rows_of(self, words: Sequence[str]) -> list[int]:
        """Rows of the words that have one, as they are or in lower case."""
        rows = (self.rows.get(word, self.rows.get(word.lower(), -1)) for word in words)
        return [row for row in rows if row >= 0]


def parts(path: Path) -> list[Path]:
    """The file and gensim's large arrays beside it. Raises ProviderError without the file."""
    if not path.is_file():
        raise ProviderError(
            f"{path}: this file of word vectors does not exist. Put it there, or correct `vectors`."
        )
    return [path, *sorted(Path(name) for name in glob.glob(f"{glob.escape(str(path))}.*.npy"))]


def content_sha256(path: Path) -> str:
    """SHA-256 over the content of all parts."""
    return join_sha256(file_sha256(part) for part in parts(path))


def load_vectors(path: Path, trusted: bool = False) -> WordVectors:
    """The vectors of a file. Raises ProviderError for another format or a file cut short, and for a
    pickle that is not `trusted`: opening one may run code."""
    sha256 = content_sha256(path)
    cache = user_cache_path("embedding-pipelines") / f"{sha256[:32]}-word2vec-{CACHE_LAYOUT}"
    if not (cache / ALL_WORDS).exists():
        _fill(cache, path, trusted)
    try:
        words: list[str] = json.loads((cache / ALL_WORDS).read_text(encoding="utf-8"))
        vectors = np.memmap(cache / "vectors.f32", np.float32, "r").reshape(len(words), -1)
    except (OSError, ValueError) as error:
        raise damage_error(cache, error) from error
    return WordVectors(path, sha256, {word: row for row, word in enumerate(words)}, vectors)


def _fill(cache: Path, path: Path, trusted: bool) -> None:
    with fill_folder(cache, ALL_WORDS) as draft:
        words: dict[str, None] = {}
        with (draft / "vectors.f32").open("wb") as file:
            try:
                for word, vector in _entries(path, trusted):
                    if word not in words:
                        words[word] = None
                        file.write(vector.tobytes())
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _format_error(path, f"it cannot be unpacked ({error})") from error
        if not words:
            raise _format_error(path, "it holds no word")
        (draft / ALL_WORDS).write_text(json.dumps(list(words)), encoding="utf-8")


def _entries(path: Path, trusted: bool) -> Iterator[tuple[str, Vectors]]:
    """Words and their vectors float32[d]. The first two lines tell the format."""
    with _open(path) as file:
        first = file.readline(LINE_BYTES)
        if first[:1] == PICKLE:
            if not trusted:
                raise ProviderError(
                    f"{path}: is a pickle, and opening one may run code. If it is gensim's "
                    "KeyedVectors and you know who wrote it, set `trusted: true`; else save it with "
                    "`save_word2vec_format`."
                )
            yield from _keyed_vectors(path)
            return
        fields = first.split()
        if len(fields) < 2:
            reason = "its first line is not a word with numbers" if first else "it is empty"
            raise _format_error(path, reason)
        if len(fields) > 2 or not all(field.isdigit() for field in fields):
            yield from _text(path, itertools.chain([first], file), len(fields) - 1, 1)
            return
        count, dimensions = int(fields[0]), int(fields[1])
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise _format_error(path, f"its first line says vectors of {dimensions:,} numbers")
        start = file.tell()
        second = file.readline(LINE_BYTES)
        file.seek(start)
        if _vector(second, dimensions) is not None:
            entries = _text(path, file, dimensions, 2)
        else:
            entries = _binary(path, file, count, dimensions)
        number = 0
        for number, entry in enumerate(entries, 1):  # noqa: B007 - read below
            yield entry
        if number < count:
            raise _format_error(path, f"it ends after {number:,} of {count:,} words")


def _open(path: Path) -> IO[bytes]:
    """The file open for reading, through gzip if it is such a file."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if is_gzip else path.open("rb")


def _text(
    path: Path, lines: Iterable[bytes], dimensions: int, start: int
) -> Iterator[tuple[str, Vectors]]:
    for number, line in enumerate(lines, start):
        if not line.strip():
            continue
        entry = _vector(line, dimensions)
        if entry is None:
            raise _format_error(path, f"line {number:,} is not a word and {dimensions} numbers")
        yield entry


def _vector(line: bytes, dimensions: int) -> tuple[str, Vectors] | None:
    """A line's word and numbers float32[d]; None for another line. The word may hold spaces, as in
    GloVe's largest files."""
    word, *numbers = line.decode("utf-8", "replace").rstrip(" \r\n").rsplit(" ", dimensions)
    if len(numbers) != dimensions:
        return None
    try:
        return word, np.array(numbers, np.float32)
    except ValueError:
        return None


def _binary(
    path: Path, file: IO[bytes], count: int, dimensions: int
) -> Iterator[tuple[str, Vectors]]:
    for _ in range(count):
        word = bytearray()
        while (byte := file.read(1)) not in (b" ", b""):
            word += byte
            if len(word) > WORD_BYTES:
                raise _format_error(path, "it is neither text nor in word2vec's binary format")
        numbers = file.read(4 * dimensions)
        if len(numbers) < 4 * dimensions:
            return
        yield word.lstrip(b"\n").decode("utf-8", "replace"), np.frombuffer(numbers, "<f4")


def _keyed_vectors(path: Path) -> Iterator[tuple[str, Vectors]]:
    keyed_vectors = need("gensim.models.keyedvectors", "word2vec")
    try:
        table = keyed_vectors.KeyedVectors.load(str(path))
        table = getattr(table, "wv", table)  # of a whole model
        words, vectors = table.index_to_key, np.asarray(table.vectors, np.float32)
    except Exception as error:  # a damaged pickle raises anything
        reason = error_lines(error)[0]
        raise _format_error(
            path,
            f"gensim's KeyedVectors cannot be read from it ({reason})",
        ) from error
    yield from zip(words, vectors, strict=True)


def _format_error(path: Path, reason: str) -> ProviderError:
    return ProviderError(
        f"{path}: not a readable file of word vectors: {reason}. Name one in word2vec's text or "
        "binary format, GloVe's or fastText's text, or one that gensim's KeyedVectors.save wrote."
    )

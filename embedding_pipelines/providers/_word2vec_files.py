"""Files of word vectors: word2vec's text and binary formats, GloVe's and fastText's text, and
gensim's KeyedVectors.

A file is read once, as a stream, and kept in the user's cache folder in a form that is mapped into
memory. A cache folder belongs to one digest of the file's content; it holds `vectors.f32`,
float32[words, d], and `words.json`.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import pickle
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.inference.backend import damaged
from embedding_pipelines.inference.cache import kept_folder
from embedding_pipelines.inference.weights import file_sha256
from embedding_pipelines.providers.base import Vectors

CACHE_LAYOUT = "1"  # raise it when what is cached changes
ALL_WORDS = "words.json"
LINE_BYTES = 1 << 20  # 4,096 numbers take 50 KB as text
MAX_DIMENSIONS = 1 << 16
WORD_BYTES = 1 << 14  # a binary file with a longer word is none

# All that a pickle of KeyedVectors names. Whatever else a file asks for is refused, so that opening
# it runs no code.
PICKLED = {
    *(
        ("gensim.models.keyedvectors", name)
        for name in ("KeyedVectors", "Word2VecKeyedVectors", "Vocab")
    ),
    *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
    *(("numpy._core.numeric", name) for name in ("_frombuffer",)),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    *(("builtins", name) for name in ("frozenset", "set")),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class WordVectors:
    """float32[words, d], mapped into memory, and which word stands in which row."""

    rows: dict[str, int]
    vectors: Vectors

    def known(self, words: Sequence[str]) -> list[int]:
        """Rows of the words there are, each as it is written, else in lower case."""
        found = (self.rows.get(word, self.rows.get(word.lower(), -1)) for word in words)
        return [row for row in found if row >= 0]


def parts(path: Path) -> list[Path]:
    """The file and those that gensim puts beside it for large arrays. Raises ProviderError if there
    is none."""
    if not path.is_file():
        raise ProviderError(
            f"{path}: there is no such file of word vectors. Put it there, or mend `vectors`."
        )
    return [path, *sorted(Path(found) for found in glob.glob(f"{glob.escape(str(path))}.*.npy"))]


def content_sha256(path: Path) -> str:
    """SHA-256 over the content of all parts; read once per process as long as they do not
    change."""
    found = [file_sha256(part) for part in parts(path)]
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def opened(path: Path, content: str) -> WordVectors:
    """The vectors of a file whose `content_sha256` is `content`.

    Raises ProviderError if the file is in none of the formats, or ends too early.
    """
    from platformdirs import user_cache_path

    cache = user_cache_path("embedding-pipelines") / f"{content[:32]}-word2vec-{CACHE_LAYOUT}"
    if not (cache / ALL_WORDS).exists():
        _convert(path, cache)
    try:
        words: list[str] = json.loads((cache / ALL_WORDS).read_text(encoding="utf-8"))
        vectors = np.memmap(cache / "vectors.f32", np.float32, "r").reshape(len(words), -1)
    except (OSError, ValueError) as error:
        raise damaged(cache, error) from error
    return WordVectors({word: row for row, word in enumerate(words)}, vectors)


def _convert(path: Path, cache: Path) -> None:
    """Fill the cache folder."""
    with kept_folder(cache, ALL_WORDS) as draft:
        words: dict[str, None] = {}
        with (draft / "vectors.f32").open("wb") as file:
            try:
                for word, vector in _entries(path):
                    if word not in words:
                        words[word] = None
                        file.write(vector.tobytes())
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise _refused(path, f"it cannot be unpacked ({error})") from error
        if not words:
            raise _refused(path, "it holds no word")
        (draft / ALL_WORDS).write_text(json.dumps(list(words)), encoding="utf-8")


def _entries(path: Path) -> Iterator[tuple[str, Vectors]]:
    """Words and their vectors float32[d], one by one; the format is told by the first two lines."""
    with _unpacked(path) as file:
        first = file.readline(LINE_BYTES)
        if first[:1] == b"\x80":
            yield from _pickled(path)
            return
        fields = first.split()
        if len(fields) < 2:
            raise _refused(
                path, "its first line is no word with numbers" if first else "it is empty"
            )
        if len(fields) > 2 or not all(field.isdigit() for field in fields):
            yield from _text(path, itertools.chain([first], file), len(fields) - 1, 1)
            return
        count, dimensions = int(fields[0]), int(fields[1])
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise _refused(path, f"its first line speaks of vectors of {dimensions:,} numbers")
        at = file.tell()
        second = file.readline(LINE_BYTES)
        file.seek(at)
        text = _vector(second, dimensions) is not None
        found = _text(path, file, dimensions, 2) if text else _binary(path, file, count, dimensions)
        read = 0
        for entry in found:
            yield entry
            read += 1
        if read < count:
            raise _refused(path, f"it ends after {read:,} of {count:,} words")


def _unpacked(path: Path) -> IO[bytes]:
    """The file open for reading, through gzip if it begins as such files do."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path)) if packed else path.open("rb")


def _text(
    path: Path, lines: Iterable[bytes], dimensions: int, start: int
) -> Iterator[tuple[str, Vectors]]:
    for number, line in enumerate(lines, start):
        if not line.strip():
            continue
        found = _vector(line, dimensions)
        if found is None:
            raise _refused(path, f"line {number:,} is not a word and {dimensions} numbers")
        yield found


def _vector(line: bytes, dimensions: int) -> tuple[str, Vectors] | None:
    """The word may hold spaces, as in GloVe's largest files, so the numbers are taken from the
    right."""
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
                raise _refused(path, "it is neither text nor in word2vec's binary format")
        numbers = file.read(4 * dimensions)
        if len(numbers) < 4 * dimensions:
            return
        yield word.lstrip(b"\n").decode("utf-8", "replace"), np.frombuffer(numbers, "<f4")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core").replace(
            "__builtin__", "builtins"
        )  # their older names
        if (module, name) not in PICKLED:
            raise pickle.UnpicklingError(
                f"it holds {module}.{name}, which is no part of word vectors"
            )
        return super().find_class(module, name)


def _pickled(path: Path) -> Iterator[tuple[str, Vectors]]:
    need("gensim.models.keyedvectors", "word2vec")
    try:
        with _unpacked(path) as file:
            found = _Unpickler(file).load()
        compressed, named = found._adapt_by_suffix(str(path))
        found._load_specials(str(path), None, compressed, named)
        words, vectors = found.index_to_key, np.asarray(found.vectors, np.float32)
    except Exception as error:  # a damaged pickle raises anything
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _refused(
            path,
            f"gensim's KeyedVectors cannot be read from it ({said}); of a model, save `model.wv`",
        ) from error
    yield from zip(words, vectors, strict=True)


def _refused(path: Path, reason: str) -> ProviderError:
    return ProviderError(
        f"{path}: this is no file of word vectors that can be read: {reason}. Name one in word2vec's text or binary "
        "format, GloVe's or fastText's text, or one that gensim's KeyedVectors.save wrote."
    )

"""The contract of compression: an unfitted choice (`Compressor`) is fitted once to an artifact
(`Codec`).

Holds the two base classes, the checks they share and the chain that a pipeline applies to documents
and queries alike. The ways to compress are the other files of this folder, one each. All codecs
keep directions, not lengths: the metric before compression is the cosine, so vectors are scaled to
unit length on their way in. A vector of zeros stays one.
"""

import functools
import io
import itertools
import json
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines import plugins, schemas
from embedding_pipelines.compression._vectors import (
    ITEM_BYTES,
    Codes,
    Dtype,
    checked,
    code_width,
    sound,
)
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.files import write_atomic
from embedding_pipelines.vectors import Vectors, unit

__all__ = [
    "Codec",
    "CodecChain",
    "Codes",
    "Compressor",
    "Dtype",
    "as_options",
    "check_chain",
    "code_width",
    "describe_chain",
]

Metric = Literal["cosine", "hamming"]

IDENTITY = "none"  # the id of a chain without codecs
_CHAIN = "chain"  # the entry of a saved chain that holds its statistics, as JSON


class Codec(ABC):
    """A fitted compression: float32[n, input_dimensions] to codes and back.

    A new one sets the class variables, `_encode` and `_decode`, and `arrays`, `statistics` and
    `load` if it holds more than its dimensions.
    """

    kind: ClassVar[str]
    dtype: ClassVar[Dtype] = "float32"
    metric: ClassVar[Metric] = "cosine"
    rescoring_codec: "Codec | None" = (
        None  # a finer code of the same vectors, kept beside this one for rescoring
    )
    oversample: int = 1  # how many times as many as are wanted to find and rescore

    def __init__(self, input_dimensions: int, dimensions: int) -> None:
        self.input_dimensions = input_dimensions
        self.dimensions = dimensions

    def encode(self, vectors: Vectors) -> Codes:
        """Codes of finite vectors float32[n, input_dimensions], n ≥ 0; CompressionError for others.

        float32, float16 or int8 [n, dimensions]; binary: uint8 [n, ceil(dimensions / 8)].
        """
        return self._encode(unit(checked(vectors, self.input_dimensions, f"{self.kind}.encode")))

    def decode(self, codes: Codes) -> Vectors:
        """The best guess at the unit vectors that were encoded, float32[n, input_dimensions]."""
        width = code_width(self.dimensions, self.dtype)
        if codes.ndim != 2 or codes.shape[1] != width:
            raise CompressionError(
                f"{self.kind}.decode: the codes have the shape {codes.shape}, and not [n, {width}]. "
                "Decode with the codec that encoded them."
            )
        return self._decode(codes)

    @property
    def bytes_per_vector(self) -> int:
        """Of one stored code and its copy."""
        own = code_width(self.dimensions, self.dtype) * ITEM_BYTES[self.dtype]
        return own + (self.rescoring_codec.bytes_per_vector if self.rescoring_codec else 0)

    @abstractmethod
    def _encode(self, vectors: Vectors) -> Codes: ...

    @abstractmethod
    def _decode(self, codes: Codes) -> Vectors: ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, for `load`."""
        return {}

    def statistics(self) -> dict[str, Any]:
        """Dimensions and figures for people and for `load`; JSON-able."""
        return {"input_dimensions": self.input_dimensions, "dimensions": self.dimensions}

    @classmethod
    def load(cls, statistics: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec that `statistics()` and `arrays()` came from."""
        return cls(statistics["input_dimensions"], statistics["dimensions"])


class Compressor(plugins.Choice):
    """One way to compress, as a pipeline file names it. `kind` is the file's name.

    A new one sets `codec` and writes `fixed`, if nothing of it is fitted, or else `_fit`.
    """

    codec: ClassVar[type[Codec]]
    of_the_model: ClassVar[bool] = (
        False  # whether it needs the numbers as the model gives them, so that it comes first
    )

    def check(self, dimensions: int) -> int:
        """Dimensions out for dimensions in; ConfigError if that cannot be."""
        return dimensions

    def fixed(self, dimensions: int) -> Codec | None:
        """The codec for vectors of `dimensions` if it is one for all of them, so that none need be
        read; else None."""
        return None

    def fit(self, vectors: Iterable[Vectors]) -> Codec:
        """The codec for vectors like these, blocks float32[n_i, d] that are read once.

        How the vectors are cut into blocks decides nothing. A codec that is `fixed` needs the first
        block alone. CompressionError if there are too few vectors, or one is not finite.
        """
        blocks = map(unit, sound(vectors, f"{self.kind}.fit"))
        first = next(blocks, None)
        if first is None:
            raise CompressionError(
                f"{self.kind}.fit: there are no vectors. Embed some documents first."
            )
        dimensions = first.shape[1]
        return self.fixed(dimensions) or self._fit(dimensions, itertools.chain([first], blocks))

    def _fit(self, dimensions: int, blocks: Iterator[Vectors]) -> Codec:
        """As `fit`, of blocks that are checked and of unit length."""
        raise NotImplementedError(f"{self.kind} has neither fixed nor _fit")


def check_chain(compressors: Sequence[Compressor], dimensions: int) -> int:
    """Dimensions out of the whole chain; ConfigError names the order to use if this one cannot
    work."""
    last = [choice for choice in compressors if choice.codec.dtype != "float32"]
    if len(last) > 1:
        kinds = ", ".join(repr(choice.kind) for choice in last)
        raise ConfigError(
            f"compression: {kinds} each end a chain, and there can be one end. Keep one of them."
        )
    order = sorted(compressors, key=lambda choice: (choice in last, not choice.of_the_model))
    if list(compressors) != order:
        raise ConfigError(
            f"compression: {', '.join(choice.kind for choice in compressors)} cannot follow one another: what cuts the "
            "model's own numbers comes first, what stores a number in fewer bits last. Use this order: "
            f"{', '.join(choice.kind for choice in order)}."
        )
    for choice in compressors:
        dimensions = choice.check(dimensions)
    return dimensions


class CodecChain:
    """What a release applies to each vector: fitted codecs one after the other; without any, the
    identity.

    The identity passes float32 on as it is, lengths included.
    """

    def __init__(self, codecs: Sequence[Codec], input_dimensions: int) -> None:
        self.codecs = tuple(codecs)
        self.input_dimensions = input_dimensions
        self.dimensions = codecs[-1].dimensions if codecs else input_dimensions
        self.dtype: Dtype = codecs[-1].dtype if codecs else "float32"
        self.metric: Metric = codecs[-1].metric if codecs else "cosine"

    @classmethod
    def fit(
        cls,
        compressors: Sequence[Compressor],
        blocks: Callable[[], Iterable[Vectors]],
        dimensions: int,
    ) -> Self:
        """Fits each to what the ones before it make of the vectors.

        `blocks()` gives the vectors anew, float32[n_i, dimensions]; they are read once for each
        compressor that is fitted to data. ConfigError as `check_chain`; CompressionError for too
        few vectors, another shape, or numbers that are not finite.
        """
        check_chain(compressors, dimensions)
        chain = cls([], dimensions)
        for compressor in compressors:
            codec = compressor.fixed(chain.dimensions) or compressor.fit(
                map(chain.encode, sound(blocks(), "compression.fit", dimensions))
            )
            chain = cls([*chain.codecs, codec], dimensions)
        return chain

    @functools.cached_property
    def id(self) -> str:
        """128-bit hex digest of all that was fitted; IDENTITY for no codec."""
        parts: list[bytes] = []
        for codec in self.codecs:
            parts += [codec.kind.encode(), json.dumps(codec.statistics(), sort_keys=True).encode()]
            for name, array in sorted(codec.arrays().items()):
                parts += [
                    name.encode(),
                    str(array.dtype).encode(),
                    str(array.shape).encode(),
                    array.tobytes(),
                ]
        return schemas.digest(*parts).hex() if parts else IDENTITY

    @property
    def rescoring_codec(self) -> Codec | None:
        """The codec of the finer copies that are kept for rescoring; None: there are none."""
        return self.codecs[-1].rescoring_codec if self.codecs else None

    @property
    def oversample(self) -> int:
        """How many times as many as are wanted to find and rescore; 1 without copies."""
        return self.codecs[-1].oversample if self.codecs else 1

    @property
    def bytes_per_vector(self) -> int:
        """Of one stored code and its copy: 1 for an int8 number, 1/8 for a binary one."""
        return (
            self.codecs[-1].bytes_per_vector
            if self.codecs
            else self.dimensions * ITEM_BYTES["float32"]
        )

    def encode(self, vectors: Vectors) -> Codes:
        """Codes of float32[n, input_dimensions], as `Codec.encode` of the last; CompressionError as
        there."""
        codes: Codes = checked(vectors, self.input_dimensions, "compression.encode")
        for codec in self.codecs:
            codes = codec.encode(codes)
        return codes

    def decode(self, codes: Codes) -> Vectors:
        """The best guess at the vectors before the chain, float32[n, input_dimensions]."""
        for codec in reversed(self.codecs):
            codes = codec.decode(codes)
        return codes if self.codecs else checked(codes, self.input_dimensions, "compression.decode")

    def encode_rescoring(self, vectors: Vectors) -> Codes | None:
        """The finer codes of float32[n, input_dimensions] as `copy` makes them; None without
        copies."""
        return (
            self.rescoring_codec.encode(self._before_last(vectors))
            if self.rescoring_codec
            else None
        )

    def rescore(self, vector: Vectors, copies: Codes) -> Vectors:
        """Cosines float32[n] of one vector float32[input_dimensions] with the vectors behind
        `copies`; 0 for zeros.

        Only of a chain with copies; what they were made with, `copy`, decodes them.
        """
        assert self.rescoring_codec is not None
        found: Vectors = (
            unit(self.rescoring_codec.decode(copies)) @ unit(self._before_last(vector[None]))[0]
        )
        return found

    def _before_last(self, vectors: Vectors) -> Vectors:
        """What the last codec is given."""
        return CodecChain(self.codecs[:-1], self.input_dimensions).encode(vectors)

    def statistics(self) -> dict[str, Any]:
        """Id, dimensions and each codec's statistics, for the release's record; JSON-able."""
        return {
            "id": self.id,
            "input_dimensions": self.input_dimensions,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "metric": self.metric,
            "codecs": [{"kind": codec.kind, **codec.statistics()} for codec in self.codecs],
        }

    def to_bytes(self) -> bytes:
        """The chain as an .npz archive without pickle, for `from_bytes`; equal chains give equal
        bytes."""
        arrays = {
            f"{at}.{name}": array
            for at, codec in enumerate(self.codecs)
            for name, array in codec.arrays().items()
        }
        statistics = np.frombuffer(json.dumps(self.statistics(), sort_keys=True).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{_CHAIN: statistics}, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The chain that `to_bytes` wrote. CompressionError, which names `where`, if it is
        damaged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                statistics = json.loads(archive[_CHAIN].tobytes())
                arrays = {name: archive[name] for name in archive.files}
            codecs = [
                _load(stage, f"{at}.", arrays) for at, stage in enumerate(statistics["codecs"])
            ]
            chain = cls(codecs, statistics["input_dimensions"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise CompressionError(
                f"{where}: this is no codec that can be read ({error!r}). Delete it and run the pipeline: "
                "a codec is fitted anew."
            ) from error
        if chain.id != statistics["id"]:
            raise CompressionError(
                f"{where}: the codec says it is {statistics['id']!r} and is {chain.id!r}. The file was changed or "
                "comes from another version of a compressor. Delete it and run the pipeline: a codec is fitted anew."
            )
        return chain

    def save(self, path: Path) -> None:
        """One file, written beside `path` and renamed, so that no reader meets half of it."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Self:
        """What `save` wrote; CompressionError if the file is missing or damaged."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CompressionError(
                f"{path}: the codec cannot be read ({error.strerror}). Run the codec step."
            ) from error
        return cls.from_bytes(data, str(path))


def _load(stage: dict[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> Codec:
    choice = plugins.choices("compression", Compressor)[stage["kind"]]
    assert issubclass(choice, Compressor)
    own = {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
    return choice.codec.load(stage, own)


def as_options(chain: Sequence[Compressor]) -> list[dict[str, Any]]:
    """A chain as a pipeline file says it, without what goes without saying."""
    return [{"kind": choice.kind, **choice.model_dump(exclude_defaults=True)} for choice in chain]


def describe_chain(options: Sequence[Mapping[str, Any]]) -> str:
    """A chain, as a pipeline file says it, in a few words: `pca 128, int8`; `float32` for none."""
    return (
        ", ".join(
            " ".join(
                f"{value}" if name in ("kind", "dimensions") else f"{name} {value}"
                for name, value in choice.items()
            )
            for choice in options
        )
        or "float32"
    )

"""The contract of compression: a choice (`Compressor`) is fitted once and gives a codec (`Codec`).

Each way to compress is another file of this folder. A pipeline applies its codecs as one chain, to
documents and queries alike. All codecs keep directions, not lengths: searches compare by the
cosine, so vectors are scaled to unit length first. A vector of zeros stays one.
"""

import functools
import io
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from embedding_pipelines import plugins, schemas
from embedding_pipelines.errors import CompressionError, ConfigError
from embedding_pipelines.files import write_atomic
from embedding_pipelines.vectors import Distance, Vectors, cosine, unit

ANY_DIMENSIONS = 2**20  # where a model's are not known, what fits into any order and number
Codes = NDArray[Any]
Dtype = Literal["float32", "float16", "int8", "binary"]

# Bytes of one number; of binary, those of eight bits.
ITEM_BYTES: dict[Dtype, int] = {"float32": 4, "float16": 2, "int8": 1, "binary": 1}
_CHAIN = "chain"  # the entry of a saved chain that holds its statistics, as JSON


def code_width(dimensions: int, dtype: Dtype) -> int:
    """Numbers in a stored code: the dimensions, or for binary the bytes that hold as many bits."""
    return -(-dimensions // 8) if dtype == "binary" else dimensions


def check_vectors(vectors: Vectors, dimensions: int | None, where: str, first: int = 0) -> Vectors:
    """`vectors` as float32[n, dimensions] (None: any); CompressionError if one is not finite.

    `first` is the number of the first row, for the message.
    """
    if vectors.ndim != 2 or dimensions not in (None, vectors.shape[1]):
        raise CompressionError(
            f"{where}: the vectors have the shape {vectors.shape}, but "
            f"[n, {'d' if dimensions is None else dimensions}] is needed. "
            "Use the codec that was fitted to this model's vectors."
        )
    vectors = np.asarray(vectors, np.float32)
    if np.isfinite(vectors).all():
        return vectors
    bad_rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    raise CompressionError(
        f"{where}: {bad_rows.size} of {len(vectors)} vectors hold NaN or infinity, the first is "
        f"number {first + bad_rows[0]}. Embed these texts again, with `run NAME --re-embed`."
    )


def check_blocks(
    blocks: Iterable[Vectors], where: str, dimensions: int | None = None
) -> Iterator[Vectors]:
    """Each block float32[n_i, dimensions] after `check_vectors`; None: as wide as the first."""
    first = 0
    for block in blocks:
        vectors = check_vectors(block, dimensions, where, first)
        dimensions = vectors.shape[1]
        first += len(vectors)
        yield vectors


class Codec(ABC):
    """A fitted compression: float32[n, input_dimensions] to codes and back.

    A subclass sets the class variables and writes `_encode` and `_decode`; if it holds more than
    its dimensions, also `arrays`, `statistics` and `load`.
    """

    kind: ClassVar[str]
    dtype: ClassVar[Dtype] = "float32"
    metric: ClassVar[Distance] = "cosine"
    # Makes the rescoring vectors: finer codes of the same vectors, stored beside the codes.
    rescoring_codec: "Codec | None" = None
    oversample: int = 1  # how many times k candidates a search rescores

    def __init__(self, input_dimensions: int, dimensions: int) -> None:
        self.input_dimensions = input_dimensions
        self.dimensions = dimensions

    def encode(self, vectors: Vectors) -> Codes:
        """Codes of finite vectors float32[n, input_dimensions], n ≥ 0; CompressionError for others.

        float32, float16 or int8 [n, dimensions]; binary: uint8 [n, ceil(dimensions / 8)].
        """
        vectors = check_vectors(vectors, self.input_dimensions, f"{self.kind}.encode")
        return self._encode(unit(vectors))

    def decode(self, codes: Codes) -> Vectors:
        """The best guess at the unit vectors that were encoded, float32[n, input_dimensions]."""
        width = code_width(self.dimensions, self.dtype)
        if codes.ndim != 2 or codes.shape[1] != width:
            raise CompressionError(
                f"{self.kind}.decode: the codes have the shape {codes.shape}, not [n, {width}]. "
                "Decode with the codec that encoded them."
            )
        return self._decode(codes)

    @property
    def bytes_per_vector(self) -> int:
        """Of one stored code and its rescoring vector."""
        own = code_width(self.dimensions, self.dtype) * ITEM_BYTES[self.dtype]
        return own + (self.rescoring_codec.bytes_per_vector if self.rescoring_codec else 0)

    @abstractmethod
    def _encode(self, vectors: Vectors) -> Codes: ...

    @abstractmethod
    def _decode(self, codes: Codes) -> Vectors: ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The fitted numbers, for `load`."""
        return {}

    def statistics(self) -> dict[str, Any]:
        """Dimensions and figures for people and for `load`, as JSON values."""
        return {"input_dimensions": self.input_dimensions, "dimensions": self.dimensions}

    @classmethod
    def load(cls, statistics: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec that `statistics()` and `arrays()` came from."""
        return cls(statistics["input_dimensions"], statistics["dimensions"])


class Compressor(plugins.Choice):
    """One way to compress, as a pipeline file names it. `kind` is the module's name.

    A subclass sets `codec` and writes `build` if it needs no vectors, else `_fit`.
    """

    codec: ClassVar[type[Codec]]
    comes_first: ClassVar[bool] = False  # because it needs the numbers as the model gives them

    def check(self, dimensions: int) -> int:
        """Dimensions out for dimensions in; ConfigError if that is impossible."""
        return dimensions

    def build(self, dimensions: int) -> Codec | None:
        """The codec for all vectors of `dimensions`; None if it has to be fitted to them."""
        return None

    def fit(self, vectors: Iterable[Vectors]) -> Codec:
        """The codec for vectors like these, in blocks float32[n_i, d], which are read once.

        The sizes of the blocks do not change it. `build` needs only the first block. Raises
        CompressionError if there are too few vectors, or one is not finite.
        """
        blocks = map(unit, check_blocks(vectors, f"{self.kind}.fit"))
        first = next(blocks, None)
        if first is None:
            raise CompressionError(
                f"{self.kind}.fit: there are no vectors. Embed some documents first."
            )
        dimensions = first.shape[1]
        return self.build(dimensions) or self._fit(dimensions, itertools.chain([first], blocks))

    def _fit(self, dimensions: int, blocks: Iterator[Vectors]) -> Codec:
        """As `fit`; all vectors are finite and of unit length."""
        raise NotImplementedError(f"{self.kind} has neither build nor _fit")


class Reducer(Compressor):
    """One that keeps `dimensions` numbers of each vector; float32, and others may follow."""

    dimensions: int = Field(ge=1)

    def check(self, dimensions: int) -> int:
        if self.dimensions > dimensions:
            raise ConfigError(
                f"compression.{self.kind}: {self.dimensions} dimensions cannot be made of "
                f"{dimensions}. Set dimensions to {dimensions} or less."
            )
        return self.dimensions


def dimensions_out_of(compressors: Sequence[Compressor], dimensions: int | None) -> int | None:
    """As `check_chain`, for a model whose own dimensions may not be known; None if the chain does not
    tell either."""
    is_cut = any(choice.kind in ("pca", "truncate") for choice in compressors)
    actual = check_chain(compressors, dimensions or ANY_DIMENSIONS)
    return actual if is_cut or dimensions is not None else None


def check_chain(compressors: Sequence[Compressor], dimensions: int) -> int:
    """Dimensions out of the whole chain; ConfigError, with the order to use, if it cannot work."""
    last = [choice for choice in compressors if choice.codec.dtype != "float32"]
    if len(last) > 1:
        kinds = ", ".join(repr(choice.kind) for choice in last)
        raise ConfigError(
            f"compression: {kinds} each end a chain, and there can be one end. Keep one of them."
        )
    order = sorted(compressors, key=lambda choice: (choice in last, not choice.comes_first))
    if list(compressors) != order:
        raise ConfigError(
            f"compression: {', '.join(choice.kind for choice in compressors)} cannot follow one "
            "another: what cuts the model's own numbers comes first, what stores a number in fewer "
            f"bits last. Use this order: {', '.join(choice.kind for choice in order)}."
        )
    for choice in compressors:
        dimensions = choice.check(dimensions)
    return dimensions


def is_fitted(compressors: Sequence[Compressor], dimensions: int) -> bool:
    """Whether any of a chain, for vectors of `dimensions`, depends on the vectors themselves."""
    for compressor in compressors:
        if compressor.build(dimensions) is None:
            return True
        dimensions = compressor.check(dimensions)
    return False


class _Identity(Codec):
    """What stands at the end of a chain without codecs."""

    def _encode(self, vectors: Vectors) -> Vectors:
        return vectors

    def _decode(self, codes: Vectors) -> Vectors:
        return codes


class CodecChain:
    """What a release applies to each vector: fitted codecs one after the other.

    Without codecs it is the identity, which keeps float32 as it is, lengths included.
    """

    def __init__(self, codecs: Sequence[Codec], input_dimensions: int) -> None:
        self.codecs = tuple(codecs)
        self.input_dimensions = input_dimensions
        last = codecs[-1] if codecs else _Identity(input_dimensions, input_dimensions)
        self.dimensions = last.dimensions
        self.dtype, self.metric = last.dtype, last.metric
        self.rescoring_codec = last.rescoring_codec  # None if the chain has none
        self.oversample = last.oversample  # times k candidates a search rescores; 1 without a codec
        self.bytes_per_vector = last.bytes_per_vector  # of a code and its rescoring vector

    @classmethod
    def fit(
        cls,
        compressors: Sequence[Compressor],
        blocks: Callable[[], Iterable[Vectors]],
        dimensions: int,
    ) -> Self:
        """Fit each to what the ones before it make of the vectors.

        Each call of `blocks()` reads the vectors, float32[n_i, dimensions], once for each
        compressor that needs them. Raises ConfigError as `check_chain` does, and CompressionError
        for too few vectors, another shape, or numbers that are not finite.
        """
        check_chain(compressors, dimensions)
        chain = cls([], dimensions)
        for compressor in compressors:
            codec = compressor.build(chain.dimensions)
            if codec is None:
                vectors = check_blocks(blocks(), "compression.fit", dimensions)
                codec = compressor.fit(map(chain.encode, vectors))
            chain = cls([*chain.codecs, codec], dimensions)
        return chain

    @functools.cached_property
    def id(self) -> str:
        """128-bit hex digest of all fitted numbers and options; "none" without codecs."""
        parts: list[bytes] = []
        for codec in self.codecs:
            parts += [codec.kind.encode(), json.dumps(codec.statistics(), sort_keys=True).encode()]
            for name, array in sorted(codec.arrays().items()):
                header = (name, str(array.dtype), str(array.shape))
                parts += [*(text.encode() for text in header), array.tobytes()]
        return schemas.digest(*parts).hex() if parts else "none"

    def encode(self, vectors: Vectors) -> Codes:
        """Codes of float32[n, input_dimensions]; shape and errors as `Codec.encode` of the last."""
        codes: Codes = check_vectors(vectors, self.input_dimensions, "compression.encode")
        for codec in self.codecs:
            codes = codec.encode(codes)
        return codes

    def decode(self, codes: Codes) -> Vectors:
        """The best guess at the vectors before the chain, float32[n, input_dimensions]. Raises
        CompressionError for codes of another shape."""
        if not self.codecs:
            return check_vectors(codes, self.input_dimensions, "compression.decode")
        for codec in reversed(self.codecs):
            codes = codec.decode(codes)
        return codes

    def encode_rescoring(self, vectors: Vectors) -> Codes | None:
        """Rescoring vectors of float32[n, input_dimensions]; None if the chain has none."""
        codec = self.rescoring_codec
        return codec.encode(self._before_last(vectors)) if codec else None

    def rescore(self, vector: Vectors, rescoring: Codes) -> Vectors:
        """Cosines float32[n] of one vector float32[input_dimensions] with n rescoring vectors.

        0 for vectors of zeros. Only for a chain with a `rescoring_codec`.
        """
        assert self.rescoring_codec is not None
        query = unit(self._before_last(vector[None]))[0]
        cosines: Vectors = unit(self.rescoring_codec.decode(rescoring)) @ query
        return cosines

    def _before_last(self, vectors: Vectors) -> Vectors:
        """The input of the last codec."""
        return CodecChain(self.codecs[:-1], self.input_dimensions).encode(vectors)

    def kept_energy(self, vectors: Vectors) -> Vectors:
        """The share of its energy, in [0, 1], that each vector of float32[n, input_dimensions]
        keeps: the squared cosine with what its finest code, the rescoring vector if there is one,
        says of it. Of a vector of zeros it is 1. Raises as `encode`."""
        if self.rescoring_codec is None:
            decoded = self.decode(self.encode(vectors))
        else:
            before = CodecChain(self.codecs[:-1], self.input_dimensions)
            finest = self.rescoring_codec.encode(before.encode(vectors))
            decoded = before.decode(self.rescoring_codec.decode(finest))
        share: Vectors = cosine(vectors, decoded, both_zero=1).clip(min=0) ** 2
        return share

    def statistics(self) -> dict[str, Any]:
        """Id, dimensions and each codec's statistics for the release's record, as JSON values."""
        return {
            "id": self.id,
            "input_dimensions": self.input_dimensions,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "metric": self.metric,
            "codecs": [{"kind": codec.kind, **codec.statistics()} for codec in self.codecs],
        }

    def to_bytes(self) -> bytes:
        """The chain as an .npz archive without pickle; equal chains give equal bytes."""
        arrays: dict[str, NDArray[Any]] = {}
        for at, codec in enumerate(self.codecs):
            arrays |= {f"{at}.{name}": array for name, array in codec.arrays().items()}
        statistics = np.frombuffer(json.dumps(self.statistics(), sort_keys=True).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{_CHAIN: statistics}, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The chain of `to_bytes`; CompressionError, which names `where`, if it is damaged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                statistics = json.loads(archive[_CHAIN].tobytes())
                arrays = {name: archive[name] for name in archive.files}
            parts = enumerate(statistics["codecs"])
            codecs = [_load(part, f"{at}.", arrays) for at, part in parts]
            chain = cls(codecs, statistics["input_dimensions"])
        except Exception as error:  # of zipfile, numpy and JSON, whatever damaged bytes make of it
            raise CompressionError(
                f"{where}: this is no codec that can be read ({error!r}). Delete it and run the "
                "pipeline, which fits a new one."
            ) from error
        if chain.id != statistics["id"]:
            raise CompressionError(
                f"{where}: the codec says it is {statistics['id']!r} and is {chain.id!r}. The file "
                "was changed or comes from another version of a compressor. Delete it and run the "
                "pipeline, which fits a new one."
            )
        return chain

    def save(self, path: Path) -> None:
        """Write one file in one rename, so that no reader meets half of it."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The chain that `save` wrote; CompressionError if the file is missing or damaged."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CompressionError(
                f"{path}: the codec cannot be read ({error.strerror}). Run the codec step."
            ) from error
        return cls.from_bytes(data, str(path))


def _load(part: dict[str, Any], prefix: str, arrays: dict[str, NDArray[Any]]) -> Codec:
    choice = plugins.choices("compression", Compressor)[part["kind"]]
    assert issubclass(choice, Compressor)
    names = [name for name in arrays if name.startswith(prefix)]
    return choice.codec.load(part, {name.removeprefix(prefix): arrays[name] for name in names})


def as_options(chain: Sequence[Compressor]) -> list[dict[str, Any]]:
    """A chain as a pipeline file says it, without what goes without saying."""
    return [{"kind": choice.kind, **choice.model_dump(exclude_defaults=True)} for choice in chain]


def describe_chain(options: Sequence[Mapping[str, Any]]) -> str:
    """A chain, as a pipeline file says it, in a few words: `pca 128, int8`; `float32` for none."""
    parts = []
    for choice in options:
        words = [
            f"{value}" if name in ("kind", "dimensions") else f"{name} {value}"
            for name, value in choice.items()
        ]
        parts.append(" ".join(words))
    return ", ".join(parts) or "float32"

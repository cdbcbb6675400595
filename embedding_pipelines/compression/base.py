"""The contract of compression: an unfitted choice (`Compressor`) is fitted once to an artifact (`Codec`).

Holds the two base classes, the checks they share and the chain that a pipeline applies to documents and
queries alike. The ways to compress are the other files of this folder, one each.

All codecs keep directions, not lengths: the metric before compression is the cosine, so vectors are scaled
to unit length on their way in. A vector of zeros stays one.
"""

import io
import json
import os
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines import plugins, schemas
from embedding_pipelines.errors import CompressionError, ConfigError

Vectors = NDArray[np.float32]
Codes = NDArray[Any]
Dtype = Literal["float32", "float16", "int8", "binary"]
Metric = Literal["cosine", "hamming"]

IDENTITY = "none"  # the id of a chain without codecs
_CHAIN = "chain"  # the entry of a saved chain that holds its facts, as JSON


class Codec(ABC):
    """A fitted compression: float32[n, input_dimensions] to codes and back.

    A new one sets the class variables, `_encode` and `_decode`, and `arrays`, `facts` and `load` if it holds
    more than its dimensions.
    """

    kind: ClassVar[str]
    dtype: ClassVar[Dtype] = "float32"
    metric: ClassVar[Metric] = "cosine"

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

    @abstractmethod
    def _encode(self, vectors: Vectors) -> Codes: ...

    @abstractmethod
    def _decode(self, codes: Codes) -> Vectors: ...

    def arrays(self) -> dict[str, NDArray[Any]]:
        """What was fitted, for `load`."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Dimensions and figures for people and for `load`; JSON-able."""
        return {"input_dimensions": self.input_dimensions, "dimensions": self.dimensions}

    @classmethod
    def load(cls, facts: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec that `facts()` and `arrays()` came from."""
        return cls(facts["input_dimensions"], facts["dimensions"])


class Compressor(plugins.Choice):
    """One way to compress, as a pipeline file names it. `kind` is the file's name."""

    codec: ClassVar[type[Codec]]

    def check(self, dimensions: int) -> int:
        """Dimensions out for dimensions in; ConfigError if that cannot be."""
        return dimensions

    @abstractmethod
    def fit(self, sample: Vectors, seed: int) -> Codec:
        """The codec for vectors like `sample` float32[n, d]; the same sample and seed give the same codec.

        CompressionError if the sample is too small, or not finite.
        """


def check_chain(compressors: Sequence[Compressor], dimensions: int) -> int:
    """Dimensions out of the whole chain; ConfigError names the order to use if this one cannot work."""
    last = [choice for choice in compressors if choice.codec.dtype != "float32"]
    if len(last) > 1:
        kinds = ", ".join(repr(choice.kind) for choice in last)
        raise ConfigError(f"compression: {kinds} each end a chain, and there can be one end. Keep one of them.")
    if last and compressors[-1] is not last[0]:
        order = [choice.kind for choice in compressors if choice is not last[0]] + [last[0].kind]
        raise ConfigError(
            f"compression: {last[0].kind!r} ends a chain, and {compressors[-1].kind!r} stands after it. "
            f"Use this order: {', '.join(order)}."
        )
    for choice in compressors:
        dimensions = choice.check(dimensions)
    return dimensions


class CodecChain:
    """What a release applies to each vector: fitted codecs one after the other; without any, the identity.

    The identity passes float32 on as it is, lengths included.
    """

    def __init__(self, codecs: Sequence[Codec], input_dimensions: int) -> None:
        self.codecs = tuple(codecs)
        self.input_dimensions = input_dimensions
        self.dimensions = codecs[-1].dimensions if codecs else input_dimensions
        self.dtype: Dtype = codecs[-1].dtype if codecs else "float32"
        self.metric: Metric = codecs[-1].metric if codecs else "cosine"
        self.id = _chain_id(self.codecs)

    @classmethod
    def fit(cls, compressors: Sequence[Compressor], sample: Vectors, seed: int) -> Self:
        """Fits each to what the ones before it make of `sample` float32[n, d].

        ConfigError as `check_chain`; CompressionError for a sample that is too small or not finite.
        """
        sample = checked(sample, None, "compression.fit")
        dimensions = sample.shape[1]
        check_chain(compressors, dimensions)
        codecs: list[Codec] = []
        for at, compressor in enumerate(compressors):
            codecs.append(compressor.fit(sample, seed))
            if at + 1 < len(compressors):
                sample = codecs[-1].encode(sample)
        return cls(codecs, dimensions)

    def encode(self, vectors: Vectors) -> Codes:
        """Codes of float32[n, input_dimensions], as `Codec.encode` of the last; CompressionError as there."""
        codes: Codes = checked(vectors, self.input_dimensions, "compression.encode")
        for codec in self.codecs:
            codes = codec.encode(codes)
        return codes

    def decode(self, codes: Codes) -> Vectors:
        """The best guess at the vectors before the chain, float32[n, input_dimensions]."""
        for codec in reversed(self.codecs):
            codes = codec.decode(codes)
        return codes if self.codecs else checked(codes, self.input_dimensions, "compression.decode")

    def facts(self) -> dict[str, Any]:
        """Id, dimensions and each codec's facts, for the release's record; JSON-able."""
        return {
            "id": self.id,
            "input_dimensions": self.input_dimensions,
            "dimensions": self.dimensions,
            "dtype": self.dtype,
            "metric": self.metric,
            "codecs": [{"kind": codec.kind, **codec.facts()} for codec in self.codecs],
        }

    def to_bytes(self) -> bytes:
        """The chain as an .npz archive without pickle, for `from_bytes`; equal chains give equal bytes."""
        arrays = {
            f"{at}.{name}": array for at, codec in enumerate(self.codecs) for name, array in codec.arrays().items()
        }
        facts = np.frombuffer(json.dumps(self.facts(), sort_keys=True).encode(), np.uint8)
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **{_CHAIN: facts}, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, where: str) -> Self:
        """The chain that `to_bytes` wrote. CompressionError, which names `where`, if it is damaged."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                facts = json.loads(archive[_CHAIN].tobytes())
                arrays = {name: archive[name] for name in archive.files}
            found = plugins.choices("compression", Compressor)
            codecs = [_load(found, at, stage, arrays) for at, stage in enumerate(facts["codecs"])]
            chain = cls(codecs, facts["input_dimensions"])
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise CompressionError(
                f"{where}: this is no codec that can be read ({error!r}). Run the codec step again."
            ) from error
        if chain.id != facts["id"]:
            raise CompressionError(
                f"{where}: the codec says it is {facts['id']!r} and is {chain.id!r}. The file was changed or "
                "comes from another version of a compressor; run the codec step again."
            )
        return chain

    def save(self, path: Path) -> None:
        """One file, written beside `path` and renamed, so that no reader meets half of it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.to_bytes())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

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


def unit(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1, float32; rows of zeros stay so."""
    squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)  # float32 overflows from 1e19 on
    lengths = np.sqrt(squares).astype(np.float32)[:, None]
    scaled: Vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return scaled


def checked(vectors: Vectors, dimensions: int | None, where: str) -> Vectors:
    """`vectors` as float32[n, dimensions] (None: any); CompressionError if shape or a number is wrong."""
    if vectors.ndim != 2 or (dimensions is not None and vectors.shape[1] != dimensions):
        wanted = "d" if dimensions is None else dimensions
        raise CompressionError(
            f"{where}: the vectors have the shape {vectors.shape}, and [n, {wanted}] is needed. "
            "Use the codec that was fitted to this model's vectors."
        )
    vectors = np.asarray(vectors, np.float32)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        raise CompressionError(
            f"{where}: {broken.size} of {len(vectors)} vectors hold NaN or infinity, the first is number "
            f"{broken[0]}. Embed these texts again."
        )
    return vectors


def code_width(dimensions: int, dtype: Dtype) -> int:
    """Numbers in one stored code: the dimensions, or for binary the bytes that hold as many bits."""
    return -(-dimensions // 8) if dtype == "binary" else dimensions


def _load(
    found: dict[str, type[plugins.Choice]], at: int, stage: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> Codec:
    choice = found[stage["kind"]]
    assert issubclass(choice, Compressor)
    prefix = f"{at}."
    own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return choice.codec.load(stage, own)


def _chain_id(codecs: Sequence[Codec]) -> str:
    if not codecs:
        return IDENTITY
    parts: list[bytes] = []
    for codec in codecs:
        parts += [codec.kind.encode(), json.dumps(codec.facts(), sort_keys=True).encode()]
        for name, array in sorted(codec.arrays().items()):
            parts += [name.encode(), str(array.dtype).encode(), str(array.shape).encode(), array.tobytes()]
    return schemas.digest(*parts).hex()

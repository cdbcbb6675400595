"""Fewer dimensions than the model's own, where that means something: a prefix of a vector whose model
was trained for it, or the PCA that a release was fitted with. Both are of unit length."""

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.compression.truncate import TruncateCodec
from embedding_pipelines.providers.common.prices import find_published, is_trained_for_truncation
from embedding_pipelines.serving.server import Served
from embedding_pipelines.serving.wire import BadRequest
from embedding_pipelines.space import Space
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines.vectors import Vectors, unit

REDUCERS = ("pca", "truncate")


def cut(
    vectors: Vectors, space: Space, dimensions: int | None, served: Served, warehouse: Warehouse
) -> tuple[Vectors, Space]:
    """Vectors float32[n, dimensions] of float32[n, d], and their space.

    None or d: as they are. Raises BadRequest with the sizes that there are for any other than
    those.
    """
    if dimensions in (None, space.dimensions):
        return vectors, space
    for chain in _chains(space, dimensions, served, warehouse):
        return unit(chain.encode(vectors)), space.with_codec(chain.id)
    raise BadRequest(
        f"dimensions: {served.name!r} gives {_possible(space, served, warehouse)}, not {dimensions}."
    )


def _chains(
    space: Space, dimensions: int | None, served: Served, warehouse: Warehouse
) -> list[CodecChain]:
    """What makes vectors of this size, the best first."""
    fitted = _fitted(served, warehouse)
    chains = [fitted] if fitted is not None and fitted.dimensions == dimensions else []
    if dimensions is not None and dimensions in _prefixes(space):
        chains.append(CodecChain([TruncateCodec(space.dimensions, dimensions)], space.dimensions))
    return chains


def _prefixes(space: Space) -> range | tuple[int, ...]:
    """The sizes to which a vector may be cut."""
    if not is_trained_for_truncation(space.provider, space.model):
        return ()
    entry = find_published(space.provider, space.model)
    if entry is not None and entry.other_dimensions:
        sizes = entry.other_dimensions
        return tuple(size for size in sizes if size < space.dimensions)
    return range(1, space.dimensions)


def _fitted(served: Served, warehouse: Warehouse) -> CodecChain | None:
    """The codecs of the release up to the last that takes dimensions away; None without one."""
    release = served.release
    if release is None or not any(each.kind in REDUCERS for each in release.spec.compression):
        return None
    whole = CodecChain.load(warehouse.pipeline(served.name).codecs / release.codec)
    last = max(at for at, codec in enumerate(whole.codecs) if codec.kind in REDUCERS)
    return CodecChain(whole.codecs[: last + 1], whole.input_dimensions)


def _possible(space: Space, served: Served, warehouse: Warehouse) -> str:
    """The sizes that there are, in words."""
    prefixes, fitted = _prefixes(space), _fitted(served, warehouse)
    sizes = [str(space.dimensions)]
    if fitted is not None:
        sizes.append(
            f"{fitted.dimensions} ({fitted.codecs[-1].kind} of release "
            f"{served.release.number if served.release else 0})"
        )
    if isinstance(prefixes, range) and prefixes:
        sizes.append(f"{prefixes.start} to {prefixes.stop - 1}")
    else:
        sizes += map(str, prefixes)
    return " or ".join(sizes)

"""codec: the compression is fitted once to all embeddings, and kept.

It is found again by what it was fitted for (compression and space), so new data does not move the
space under the vectors that are already stored. Which fitted file is in force a pointer says:
fitting anew writes a file beside the old one, which the releases that were made with it keep, and
moves the pointer.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, StoreError
from embedding_pipelines.files import list_files, read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.common.prices import is_trained_for_truncation
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.space import Space
from embedding_pipelines.spec.pipeline import fingerprint
from embedding_pipelines.steps.chain import StepContext
from embedding_pipelines.vectors import Vectors, to_matrix


def fit_codec(context: StepContext, space: Space, again: bool = False) -> StepReport:
    """Fit and keep the pipeline's codec for vectors of `space`, if that was not done before, or is
    to be done `again`.

    Raises CompressionError if there are too few vectors to fit it to.
    """
    current = None if again else current_codec(context, space)
    if current is not None:
        return current
    made = (context.folder.embeddings.manifest(name) for name in context.spec.partition_names)
    total = sum(entry.rows - entry.statistics.get("rejected", 0) for entry in made if entry)
    if context.spec.compression and not total:
        raise CompressionError(
            f"Pipeline {context.spec.name!r}: there is no text to fit the compression on, since no document was "
            "read or all of them are empty. Add documents, or leave out compression until there are some."
        )
    _warn_of_truncation(context, space)
    fitted = CodecChain.fit(
        context.spec.compression, lambda: _vectors(context, space, total), space.dimensions
    )
    # Its own id is in the name: one that is fitted anew never takes the place of one that a release
    # names.
    path = context.folder.codecs / f"{fitted_for(context, space)}-{fitted.id[:16]}.npz"
    fitted.save(path)
    write_json(_pointer(context), {**_in_force(context), fitted_for(context, space): path.name})
    return StepReport("codec", True, _statistics(context, path))


def current_codec(context: StepContext, space: Space) -> StepReport | None:
    """The report of a codec that was fitted before, None if there is none."""
    path = codec_path(context, space)
    return StepReport("codec", False, _statistics(context, path)) if path else None


def load_codec(context: StepContext, space: Space) -> CodecChain:
    """The codec that `fit_codec` kept. Raises CompressionError if there is none."""
    path = codec_path(context, space)
    if path is None:
        raise CompressionError(
            f"Pipeline {context.spec.name!r}: its codec is not fitted yet. Materialize 'codec' first, or run "
            f"`embedding-pipelines run {context.spec.name}`."
        )
    return CodecChain.load(path)


def codec_path(context: StepContext, space: Space) -> Path | None:
    """Where the codec in force for vectors of `space` is kept, None if none was fitted yet."""
    wanted = fitted_for(context, space)
    found = {path.name: path for path in list_files(context.folder.codecs, f"{wanted}-*.npz")}
    named = found.get(_in_force(context).get(wanted, ""))
    return named or max(
        found.values(), key=lambda path: (path.stat().st_mtime_ns, path.name), default=None
    )


def fitted_for(context: StepContext, space: Space) -> str:
    """What a codec is found again by: the compression and the space."""
    return fingerprint(*context.spec.compression, space.id)[:16]


@contextlib.contextmanager
def unless_it_fails(context: StepContext) -> Iterator[None]:
    """Put the codecs that were in force back in force if the body raises."""
    before = _in_force(context)
    try:
        yield
    except BaseException:
        write_json(_pointer(context), before)
        raise


def _pointer(context: StepContext) -> Path:
    return context.folder.codecs / "current.json"


def _in_force(context: StepContext) -> dict[str, str]:
    """The file in force by what it was fitted for. A pointer that is lost or damaged names none."""
    try:
        found: Any = read_json(_pointer(context))
    except StoreError:
        return {}
    return (
        {name: file for name, file in found.items() if isinstance(file, str)}
        if isinstance(found, dict)
        else {}
    )


def _vectors(context: StepContext, space: Space, total: int) -> Iterator[Vectors]:
    """All embeddings, partition by partition, blocks float32[n_i, space.dimensions]."""
    done = 0
    for partition in context.spec.partition_names:
        for batch in context.folder.embeddings.read(partition, [VECTOR]):
            vectors = to_matrix(batch[VECTOR].drop_null())
            done += len(vectors)
            context.progress.update("codec", done, total, "vectors")
            yield vectors


def _warn_of_truncation(context: StepContext, space: Space) -> None:
    """A note where vectors are cut that were not made for it."""
    cut = any(choice.kind == "truncate" for choice in context.spec.compression)
    if cut and not is_trained_for_truncation(space.provider, space.model):
        context.progress.note(
            f"{context.spec.name}: compression.truncate cuts vectors of {space.model!r}, which is not known to be "
            "trained for that (Matryoshka). `pca` of the same dimensions keeps more of them."
        )


def _statistics(context: StepContext, path: Path) -> dict[str, Any]:
    codec, optimized = CodecChain.load(path), context.spec.optimized
    energies = [part.statistics()["kept_energy"] for part in codec.codecs if part.kind == "pca"]
    return {
        "codec": codec.id,
        "dimensions": codec.dimensions,
        "dtype": codec.dtype,
        "metric": codec.metric,
        "bytes_per_vector": codec.bytes_per_vector,
        "size_bytes": path.stat().st_size,
        **({"kept_energy": energies[0]} if energies else {}),
        **(
            {"optimized": optimized.model_dump(mode="json", exclude_none=True)} if optimized else {}
        ),
    }

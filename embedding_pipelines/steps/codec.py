"""codec: the compression is fitted once to all embeddings, and kept.

A codec is identified by what it was fitted for (compression and space), so new data does not move
the space of the vectors that are already stored. A pointer says which file is in force: a refit
writes a file beside the old one, which its releases keep, and moves the pointer.
"""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.errors import CompressionError, StoreError
from embedding_pipelines.files import list_files, read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.common.prices import is_trained_for_truncation
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Option, Options, Reports, Step
from embedding_pipelines.vectors import Vectors, to_matrix


class CodecStep(Step):
    name = "codec"
    inputs = ("embeddings",)
    description = (
        "The compression, fitted once for this model and kept, for documents and queries alike."
    )
    technologies = ("numpy",)
    sentence = "{dimensions:,} x {dtype}, {bytes_per_vector} each"
    identity = ("codec",)
    options = (
        Option("refit", False, "Refit the codec on the current embeddings; writes a new table."),
    )

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(*spec.compression)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        path = codec_path(run)
        return StepReport(self.name, False, _statistics(run, path)) if path else None

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """The option `refit` fits the codec to the current embeddings, and a new table follows."""
        refit = (options or {}).get("refit", False)
        yield (None if refit else self.current(run)) or fit_codec(run)


def fit_codec(run: Run) -> StepReport:
    """Fit the pipeline's codec to its current embeddings and put it in force.

    Raises CompressionError if there are too few vectors to fit it to.
    """
    spec, space = run.spec, run.model.space
    manifests = run.folder.embeddings.manifests(spec.partition_names)
    total = sum(entry.rows - entry.rejected for entry in manifests)
    if spec.compression and not total:
        raise CompressionError(
            f"Pipeline {spec.name!r}: there is no text to fit the compression on, since no "
            "document was read or all of them are empty. Add documents, or leave out compression "
            "until there are some."
        )
    cut = any(choice.kind == "truncate" for choice in spec.compression)
    if cut and not is_trained_for_truncation(space.provider, space.model):
        run.progress.note(
            f"{spec.name}: compression.truncate cuts vectors of {space.model!r}, which is not "
            "known to be trained for that (Matryoshka). `pca` of the same dimensions keeps more."
        )
    codec = CodecChain.fit(spec.compression, lambda: _vectors(run, total), space.dimensions)
    # Its own id is in the name: a refitted codec never replaces one that a release names.
    path = run.folder.codecs / f"{codec_key(run)}-{codec.id[:16]}.npz"
    codec.save(path)
    write_json(run.folder.codecs_in_force, {**_in_force(run), codec_key(run): path.name})
    return StepReport(CodecStep.name, True, _statistics(run, path))


def load_codec(run: Run) -> CodecChain:
    """The codec that `fit_codec` kept. Raises CompressionError if there is none."""
    path = codec_path(run)
    if path is None:
        raise CompressionError(
            f"Pipeline {run.spec.name!r}: its codec is not fitted yet. Materialize 'codec' first, "
            f"or run `embedding-pipelines run {run.spec.name}`."
        )
    return CodecChain.load(path)


def codec_path(run: Run) -> Path | None:
    """The file of the codec in force for the pipeline's space, None if none was fitted yet."""
    key = codec_key(run)
    files = {path.name: path for path in list_files(run.folder.codecs, f"{key}-*.npz")}
    if in_force := files.get(_in_force(run).get(key, "")):
        return in_force
    return max(files.values(), key=lambda path: (path.stat().st_mtime_ns, path.name), default=None)


def codec_key(run: Run) -> str:
    """Identifies what a codec was fitted for: the compression and the space."""
    return fingerprint(*run.spec.compression, run.model.space.id)[:16]


@contextlib.contextmanager
def unless_it_fails(run: Run) -> Iterator[None]:
    """Put the codecs that were in force back in force if the body raises."""
    before = _in_force(run)
    try:
        yield
    except BaseException:
        write_json(run.folder.codecs_in_force, before)
        raise


def _in_force(run: Run) -> dict[str, str]:
    """The file in force by what it was fitted for. A pointer that is lost or damaged names none."""
    try:
        return read_json(run.folder.codecs_in_force) or {}
    except StoreError:
        return {}


def _vectors(run: Run, total: int) -> Iterator[Vectors]:
    """All embeddings, partition by partition, blocks float32[n_i, d]."""
    done = 0
    for partition in run.spec.partition_names:
        for batch in run.folder.embeddings.read(partition, [VECTOR]):
            vectors = to_matrix(batch[VECTOR].drop_null())
            done += len(vectors)
            run.progress.update("codec", done, total, "vectors")
            yield vectors


def _statistics(run: Run, path: Path) -> dict[str, Any]:
    codec, optimized = CodecChain.load(path), run.spec.optimized
    statistics = {
        "codec": codec.id,
        "dimensions": codec.dimensions,
        "dtype": codec.dtype,
        "metric": codec.metric,
        "bytes_per_vector": codec.bytes_per_vector,
        "size_bytes": path.stat().st_size,
    }
    energies = [part.statistics()["kept_energy"] for part in codec.codecs if part.kind == "pca"]
    if energies:
        statistics["kept_energy"] = energies[0]
    if optimized is not None:
        statistics["optimized"] = optimized.model_dump(mode="json", exclude_none=True)
    return statistics

"""codec: the compression is fitted to all embeddings, and kept as long as it suits them.

A codec is identified by what it was fitted for (compression and space), so new data does not move
the space of the vectors that are already stored. What it keeps of the embeddings is measured
whenever they have changed; if a refit would keep clearly more, it is refitted. A pointer says which
file is in force: a refit writes a file beside the old one, which its releases keep, and moves the
pointer.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from embedding_pipelines.compression.base import CodecChain, is_fitted
from embedding_pipelines.errors import CompressionError, StoreError
from embedding_pipelines.files import list_files, read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.common.prices import is_trained_for_truncation
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Option, Options, Reports, Step
from embedding_pipelines.storage.warehouse import parse_state
from embedding_pipelines.vectors import Vectors, to_matrix

SAMPLE = 10_000  # vectors, or all if there are fewer, that tell how well a codec suits them
# A codec is refitted if a refit would keep so much more of the vectors' energy; where it would lose
# next to nothing, three times what it loses, which is what rounding needs to show in a search.
MORE_ENERGY = 0.02
LEAST_MORE = 0.002


@dataclass(frozen=True)
class Fit:
    """How well a codec suits the embeddings: mean shares of their energy that it keeps."""

    codec: str  # file name
    embeddings: str  # digest of all shards that were last measured
    fitted: float  # when it was fitted, or first measured
    now: float


COPY = ".copy"  # in place of a codec's `.npz`, for when that is damaged


class CodecStep(Step):
    name = "codec"
    inputs = ("embeddings",)
    description = (
        "The compression, fitted for this model and kept while it suits the embeddings, for "
        "documents and queries alike."
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
        if path is None or (_depends(run) and _fit(run, path, _embeddings(run)) is None):
            return None
        return StepReport(self.name, False, _statistics(run, path))

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        """The option `refit` fits the codec to the current embeddings, and a new table follows."""
        if (options or {}).get("refit", False) or codec_path(run) is None:
            yield fit_codec(run)
        else:
            yield self.current(run) or _review(run)


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
            f"compression.truncate cuts vectors of {space.model!r}, which is not "
            "known to be trained for that (Matryoshka). `pca` of the same dimensions keeps more."
        )
    codec = CodecChain.fit(spec.compression, lambda: _vectors(run, total), space.dimensions)
    # Its own id is in the name: a refitted codec never replaces one that a release names.
    path = run.folder.codecs / f"{codec_key(run)}-{codec.id[:16]}.npz"
    codec.save(path)
    codec.save(path.with_suffix(COPY))  # without it no release that names it can be searched
    write_json(run.folder.codecs_in_force, {**_in_force(run), codec_key(run): path.name})
    if _depends(run):
        energy = _energy_kept_by(codec, _sample(run))
        _write_fit(run, Fit(path.name, _embeddings(run), energy, energy))
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


def _review(run: Run) -> StepReport:
    """Measure the codec in force on the embeddings, and refit it if that keeps clearly more."""
    codec, path, sample = load_codec(run), codec_path(run), _sample(run)
    assert path is not None
    before, now = _fit(run, path), _energy_kept_by(codec, sample)
    if len(sample) and (before is None or _is_worse(now, before.fitted)):
        best = _energy_kept_by(
            CodecChain.fit(run.spec.compression, lambda: [sample], len(sample[0])), sample
        )
        if _is_worse(now, best):
            report = fit_codec(run)
            run.progress.note(
                f"the compression was fitted to other texts: it keeps {now:.1%} of "
                f"the energy of the present vectors, and {best:.1%} once it is fitted to them, which "
                "has been done. All rows are written anew, to a table of their own; no text is "
                "embedded again."
            )
            return report
    _write_fit(run, Fit(path.name, _embeddings(run), before.fitted if before else now, now))
    return StepReport(CodecStep.name, False, _statistics(run, path))


def _is_worse(kept: float, best: float) -> bool:
    """Whether a share of energy is so much less than another that it is worth a refit."""
    return best - kept > max(LEAST_MORE, min(MORE_ENERGY, 3 * (1 - best)))


def _energy_kept_by(codec: CodecChain, sample: Vectors) -> float:
    return round(float(codec.kept_energy(sample).mean()), 6) if len(sample) else 1.0


def _depends(run: Run) -> bool:
    """Whether the codec depends on the vectors that it is fitted to."""
    return is_fitted(run.spec.compression, run.model.space.dimensions)


def _embeddings(run: Run) -> str:
    """Identifies all embeddings."""
    manifests = run.folder.embeddings.manifests(run.spec.partition_names)
    return fingerprint(*(manifest.digest for manifest in manifests))


def _fit(run: Run, path: Path, embeddings: str = "") -> Fit | None:
    """What is on record of a codec, if need be of these embeddings; None if nothing is."""
    fit = _fits(run).get(codec_key(run))
    if fit is None or fit.codec != path.name or embeddings not in ("", fit.embeddings):
        return None
    return fit


def _write_fit(run: Run, fit: Fit) -> None:
    fits = {**_fits(run), codec_key(run): fit}
    write_json(run.folder.codec_fit, {key: asdict(entry) for key, entry in fits.items()})


def _fits(run: Run) -> dict[str, Fit]:
    """By what a codec was fitted for. What is lost or damaged is measured again."""
    try:
        entries = read_json(run.folder.codec_fit) or {}
    except StoreError:
        return {}
    fits = {key: parse_state(Fit, entry) for key, entry in entries.items()}
    return {key: fit for key, fit in fits.items() if fit is not None}


def _sample(run: Run) -> Vectors:
    """Up to SAMPLE sound embeddings float32[n, d] of some partitions, which are random parts of
    all; always the same ones of the same embeddings."""
    shards, generator = run.folder.embeddings, np.random.default_rng(run.spec.seed)
    names, total = list[str](), 0
    for name in generator.permutation(run.spec.partition_names):
        manifest = shards.manifest(str(name))
        if manifest is not None and total < SAMPLE:
            names.append(str(name))
            total += manifest.rows
    chosen = np.sort(generator.choice(total, min(total, SAMPLE), replace=False))
    parts, done = [np.empty((0, run.model.space.dimensions), np.float32)], 0
    for name in names:
        for batch in shards.read(name, [VECTOR]):
            if not len(chosen) or done > chosen[-1]:
                break
            low, high = np.searchsorted(chosen, [done, done + batch.num_rows])
            rows = batch[VECTOR].take(pa.array(chosen[low:high] - done))
            parts.append(to_matrix(rows.drop_null()))
            done += batch.num_rows
    vectors = np.concatenate(parts)
    sample: Vectors = vectors[np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)]
    return sample


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
    if fit := _fit(run, path):
        statistics["kept_energy_now"] = fit.now
    energies = [part.statistics()["kept_energy"] for part in codec.codecs if part.kind == "pca"]
    if energies:
        statistics["kept_energy"] = energies[0]
    if optimized is not None:
        statistics["optimized"] = optimized.model_dump(mode="json", exclude_none=True)
    return statistics

"""Whether the sections of a pipeline file fit one another: its model, chunks, compression and store,
as far as options, tables of models and a model's own files tell without opening it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from embedding_pipelines.compression.base import dimensions_out_of
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.preprocessing.chunk import effective_limit
from embedding_pipelines.spec.pipeline import PipelineSpec

FEW_TOKENS = 8  # a chunk of more has room for text, whatever a model adds to it


class Misfit(NamedTuple):
    """What a run would end with."""

    option: tuple[str, ...]  # of the pipeline file
    what: str


def misfits(
    spec: PipelineSpec, home: Path, wrong: frozenset[str] = frozenset()
) -> Iterator[Misfit]:
    """What does not fit; the sections `wrong` are not looked at."""
    if not wrong & {"preprocessing", "model"}:
        yield from _of_chunks(spec, home)
    if not wrong & {"compression", "store", "output_dim"}:
        yield from _of_dimensions(spec, home, "model" in wrong)


def require_fit(spec: PipelineSpec, home: Path) -> None:
    """Raises ConfigError for the first misfit but that of `output_dim`: the step `embeddings` tells it
    with all that the open model can give."""
    for misfit in misfits(spec, home):
        if misfit.option != ("output_dim",):
            raise ConfigError(misfit.what)


def _of_chunks(spec: PipelineSpec, home: Path) -> Iterator[Misfit]:
    limit, chunk = spec.model.known_context(home), spec.preprocessing.chunk
    if limit is None or chunk is None:
        return
    size = min(limit, chunk.max_tokens or limit)
    special = spec.model.known_special_tokens(home) if size <= FEW_TOKENS else 0
    try:
        effective_limit(limit, chunk, special)
    except ConfigError as error:
        is_written = bool(chunk.model_fields_set)  # else the model is what somebody chose
        option = "overlap" if 2 * chunk.overlap > size else "max_tokens"
        yield Misfit(("preprocessing", "chunk", option) if is_written else ("model",), str(error))


def _of_dimensions(spec: PipelineSpec, home: Path, is_unknown: bool) -> Iterator[Misfit]:
    size = None if is_unknown else spec.model.known_dimensions(home)
    chain = spec.compression
    try:
        actual = dimensions_out_of(chain, size)
    except ConfigError as error:
        yield Misfit(("compression",), str(error))
        return
    if actual is None:
        return
    try:
        spec.store.check(chain[-1].codec.dtype if chain else "float32", actual)
    except ConfigError as error:
        yield Misfit(("store",), str(error))
    if spec.output_dim not in (None, actual):
        yield Misfit(
            ("output_dim",),
            f"output_dim is {spec.output_dim}, but model and compression give {actual}. Set it to "
            f"{actual}, or leave it out.",
        )

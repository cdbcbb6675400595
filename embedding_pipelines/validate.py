"""What is wrong with a pipeline before it has run: its file, and all that can be known of what the
file names without spending anything. No model is opened, no service asked but the store of a bucket
that is the source, no code imported.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError, SourceError
from embedding_pipelines.quality.queries import read_pairs, read_qrels
from embedding_pipelines.quality.training import check_pairs
from embedding_pipelines.run import Run
from embedding_pipelines.sources.base import Input, ReadLog, Source, fetched
from embedding_pipelines.spec.fit import misfits
from embedding_pipelines.spec.load import Draft
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.steps.output import check_place
from embedding_pipelines.storage.warehouse import Warehouse

MAX_FILES = 20  # whose columns are looked at
MAX_BYTES = 64 * 2**20  # of such a file: a JSON array is read whole


class Fault(NamedTuple):
    """Something that a run would end with, or that its end would show."""

    option: tuple[str, ...]  # of the pipeline file
    what: str
    is_key: bool = False  # a key that this process lacks, and a run does not
    is_doubt: bool = False  # it may be right all the same


def check_file(draft: Draft, warehouse: Warehouse) -> tuple[list[str], list[str]]:
    """What is wrong with a pipeline file and what it names, and what may be, a line for each."""
    lines, doubts = list(draft.problems), list[str]()
    if draft.spec is not None:
        for fault in faults(draft.spec, warehouse, draft.wrong):
            line = f"{draft.place(*fault.option)}: {fault.what}"
            (doubts if fault.is_doubt else lines).append(line)
    return list(dict.fromkeys(lines)), doubts


def check_new(spec: PipelineSpec, warehouse: Warehouse) -> list[str]:
    """What may be wrong with a pipeline that has no file yet. Raises ConfigError, with a line for
    each mistake, if something is; a key that this process lacks is none."""
    every = list(faults(spec, warehouse))
    if wrong := [fault.what for fault in every if not fault.is_key and not fault.is_doubt]:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return [fault.what for fault in every]


def faults(
    spec: PipelineSpec, warehouse: Warehouse, wrong: frozenset[str] = frozenset()
) -> Iterator[Fault]:
    """What is wrong with what a pipeline names; its `wrong` sections are not looked at."""
    home = warehouse.home
    if "source" not in wrong:
        yield from _of_source(spec, home)
    if spec.output is not None and not wrong & {"source", "output"}:
        try:
            check_place(Run(spec, warehouse))
        except ConfigError as error:
            yield Fault(("output",), str(error))
    if "model" not in wrong:
        yield from _of_model(spec, warehouse)
        yield from (Fault(("model",), what, is_key=True) for what in spec.model.missing_keys())
        yield from (Fault(("model",), what, is_doubt=True) for what in spec.model.doubts(home))
    yield from (Fault(*misfit) for misfit in misfits(spec, home, wrong))
    if not wrong & {"source", "evaluation"}:
        run = Run(spec, warehouse)
        for read in (read_qrels, read_pairs):
            try:
                read(run)
            except EmbeddingPipelinesError as error:
                yield Fault(("evaluation",), str(error))


def require_model(spec: PipelineSpec, warehouse: Warehouse) -> None:
    """Raises ConfigError, with a line for each mistake, for a model that a run could not use, or that
    does not fit the other sections."""
    mistakes = [fault.what for fault in _of_model(spec, warehouse)]
    mistakes += [misfit.what for misfit in misfits(spec, warehouse.home)]
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _of_source(spec: PipelineSpec, home: Path) -> Iterator[Fault]:
    source = spec.source
    try:
        files = source.files(home)
        yield from _of_files(source, files)
    except (SourceError, ConfigError) as error:
        yield Fault(("source", "path"), str(error))


def _of_model(spec: PipelineSpec, warehouse: Warehouse) -> Iterator[Fault]:
    mistakes = list(spec.model.mistakes(warehouse.home))
    yield from (Fault(("model",), what) for what in mistakes)
    finetuning = getattr(spec.model, "finetune", None)
    if finetuning and not mistakes:
        try:
            check_pairs(Run(spec, warehouse), finetuning)
        except EmbeddingPipelinesError as error:
            yield Fault(("model",), str(error))


def _of_files(source: Source, files: Sequence[Input]) -> Iterator[Fault]:
    """What the first rows of some files show. Raises SourceError for objects that cannot be
    fetched."""
    lacking: dict[str, list[str]] = {}  # the files without a column
    columns: dict[str, None] = {}
    looked_at = [file for file in files if 0 < file.size_bytes <= MAX_BYTES][:MAX_FILES]
    fatal: set[str] = set()
    with_rows = 0
    with fetched(looked_at) as local:
        for file in local:
            log = ReadLog(reject=lambda _: None)
            try:
                rows = list(itertools.islice(source.read(file, log), 1))
            except SourceError as error:
                if not log.lacking or log.hint:  # one cause, whatever columns it hides
                    yield Fault(("source",), str(error))
                    return
                rows, missing = [], {*log.lacking}
                fatal |= {source.id or ""} & missing
                fatal |= {*source.text} if missing >= {*source.text} else set()
            with_rows += bool(rows) or bool(log.lacking)
            for column in log.lacking:
                lacking.setdefault(column, []).append(file.name)
            columns |= dict.fromkeys(log.columns)
    for column, names in lacking.items():
        # Else it may be in a file that was not looked at, or that has it.
        if column in fatal or len(names) == with_rows == len(files):
            option = "text" if column in source.text else "metadata"
            words = str(source.missing_column_error(names[0], column, columns))
            yield Fault(("source", "id" if column == source.id else option), words)

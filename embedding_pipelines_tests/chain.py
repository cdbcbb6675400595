"""Runs a pipeline's steps without Dagster, in the order the data takes, and sees what the model is
sent."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embedding_pipelines.progress import StepReport
from embedding_pipelines.providers.base import EmbeddingModel
from embedding_pipelines.providers.hashing import Hashing
from embedding_pipelines.quality.base import Outcome
from embedding_pipelines.run import Run
from embedding_pipelines.schemas import VECTOR
from embedding_pipelines.search import Searcher
from embedding_pipelines.spec.load import find_pipeline
from embedding_pipelines.steps.chain import steps_of
from embedding_pipelines.steps.checks import current_checks, run_checks
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.recording import Recording


def hashing(**options: Any) -> EmbeddingModel:
    """An open model that needs no weights."""
    return Hashing(**options).open(Path())


def write_pipeline(home: Path, name: str, text: str) -> Path:
    """A pipeline file in the home folder."""
    path = home / "pipelines" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_csv(
    home: Path, name: str, rows: Sequence[Sequence[object]], header: str = "id,title,cat"
) -> Path:
    """A CSV file below `data/`, all cells quoted."""
    path = home / "data" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join('"' + str(cell).replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\n".join([header, *lines, ""]).encode())
    return path


def copy_home(built: Path, home: Path) -> Path:
    """A home that was built once, for a test that may change it; with its modification times."""
    shutil.copytree(built, home, dirs_exist_ok=True)
    return home


def run_of(home: Path, name: str, model: EmbeddingModel | None = None) -> Run:
    return Run(find_pipeline(name, home), Warehouse(home), model=model)


def steps(run: Run) -> Iterator[tuple[str, Any]]:
    """Every step in turn; what it reports, of `checks` the outcomes.

    A recording model is not asked by checks, so that it has on record what was embedded.
    """
    asked = run
    if isinstance(run.model, Recording):
        asked = Run(run.spec, run.warehouse, model=run.model.inner)
    for step in steps_of(run.spec):
        if step.name == "checks":
            yield step.name, checks_of(asked)
            continue
        for report in step.work(run, run.spec.partition_names):
            yield step.name, report


def checks_of(run: Run) -> list[Outcome]:
    """The outcomes of all checks; those that need not be repeated as they are on record."""
    record = current_checks(run)
    return (record if record and record.is_settled else run_checks(run)).checks


def run_steps(home: Path, name: str, model: EmbeddingModel | None = None) -> list[StepReport]:
    """documents to release; raises what the first failing step raises."""
    with run_of(home, name, model) as run:
        return [result for step, result in steps(run) if step != "checks"]


def run_recorded(home: Path, name: str) -> tuple[list[StepReport], list[str]]:
    """As `run_steps`, with the texts that reached the model."""
    with run_of(home, name) as run:
        recording = Recording(run.model)
        return run_steps(home, name, recording), recording.texts


def report(reports: Sequence[StepReport], step: str) -> StepReport:
    """The one report of an unpartitioned step."""
    (found,) = [entry for entry in reports if entry.step == step]
    return found


def live_rows(home: Path, name: str) -> dict[str, dict[str, Any]]:
    """The live table by chunk id, all columns, vectors included."""
    searcher = Searcher(Warehouse(home), name)
    table, version = searcher.rows.current.table, searcher.release.version
    names = table.schema(version).names
    rows = [row for batch in table.scan(names, version=version) for row in batch.to_pylist()]
    found = {row["chunk_id"]: row for row in rows}
    assert len(found) == len(rows) == searcher.release.rows
    return found


def assert_same_rows(left: dict[str, dict[str, Any]], right: dict[str, dict[str, Any]]) -> None:
    """Row by row; vectors within the tolerance that batch shapes may cost."""
    assert left.keys() == right.keys()
    for name, row in left.items():
        other = right[name]
        assert {**row, VECTOR: None} == {**other, VECTOR: None}
        np.testing.assert_allclose(row[VECTOR], other[VECTOR], atol=1e-5)


def top(home: Path, name: str, query: str, k: int = 1, filter: str | None = None) -> list[str]:
    """Document ids of the nearest chunks."""
    return [
        hit.document_id for hit in Searcher(Warehouse(home), name).search(query, k, filter).hits
    ]

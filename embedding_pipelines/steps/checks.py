"""checks: what must hold of the newest table version, and what it is worth, before its release.

A version that passed is not checked again until the table, `evaluation:` or one of its files
changes; an inconclusive check is repeated by the next run.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

from embedding_pipelines.embedding.budget import BudgetTracker
from embedding_pipelines.errors import ReleaseError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.progress import StepReport
from embedding_pipelines.quality.base import Outcome
from embedding_pipelines.quality.evaluate import evaluate
from embedding_pipelines.quality.evidence import Candidate
from embedding_pipelines.quality.queries import evaluation_files
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.spec.pipeline import PipelineSpec, fingerprint
from embedding_pipelines.steps.base import Options, Reports, Step
from embedding_pipelines.steps.codec import load_codec
from embedding_pipelines.steps.documents import read_files
from embedding_pipelines.steps.duplicates import write_near
from embedding_pipelines.steps.vector_store import TableState, open_table, table_state
from embedding_pipelines.storage.warehouse import parse_state


@dataclass(frozen=True)
class CheckRecord:
    """The outcomes for one table version."""

    table: str
    version: int
    inputs: str  # fingerprint of all that they depend on
    metrics: dict[str, float]
    checks: list[Outcome]

    def is_of(self, state: TableState) -> bool:
        return (self.table, self.version) == (state.table, state.version)

    @property
    def is_settled(self) -> bool:
        """Whether nothing has to be checked again."""
        return all(check.conclusive and not check.blocks for check in self.checks)


class ChecksStep(Step):
    name = "checks"
    inputs = ("vector_store",)
    is_asset = False
    description = "Structure of the newest table version, and its quality in figures."
    sentence = "{passed:,} of {checks:,} passed"
    extras: ClassVar[Mapping[str, str]] = {
        "ndcg_at_10": "nDCG@10 {:.3f}",
        "known_item_recall": "known items {:.3f}",
        "recall_at_10": "recall@10 {:.3f}",
    }

    def configuration(self, spec: PipelineSpec) -> str:
        return fingerprint(spec.evaluation, spec.search)

    def current(self, run: Run, partition: str | None = None) -> StepReport | None:
        record = current_checks(run)
        return _report(record, changed=False) if record and record.is_settled else None

    def work(self, run: Run, partitions: Sequence[str], options: Options = None) -> Reports:
        yield self.current(run) or _report(run_checks(run), changed=True)


def run_checks(run: Run) -> CheckRecord:
    """Check the newest version of the table and write the outcomes for `release`.

    Raises ReleaseError if the table was not completely written with the present configuration.
    """
    codec, state = load_codec(run), table_state(run)
    table, name = open_table(run, codec)
    if state is None or (state.table, state.version) != (name, table.version):
        raise ReleaseError(
            f"Pipeline {run.spec.name!r}: the table was not completely written with the present "
            f"configuration. Run `embedding-pipelines run {run.spec.name}`."
        )
    releases, files = read_releases(run.folder), read_files(run).values()
    candidate = Candidate(
        run=run,
        codec=codec,
        table=table,
        name=name,
        version=state.version,
        rows=state.rows,
        has_index=state.trained_rows > 0,
        source_rows=sum(file.rows for file in files),
        source_files=len(files),
        rejected_records=sum(file.rejected for file in files),
        live=releases.get(releases.live),
        budget=BudgetTracker.of(run.spec.budget, run.spec.model),
    )
    inputs = _inputs(run, state)  # before: who edits a file meanwhile gets it measured next time
    outcomes = evaluate(candidate)
    if run.spec.source.has_images and (words := write_near(run).sentence):
        run.progress.note(f"{words}; all are kept, and listed in {run.folder.duplicates}")
    record = CheckRecord(name, state.version, inputs, candidate.metrics, outcomes)
    write_json(run.folder.checks, asdict(record))
    return record


def read_checks(run: Run) -> CheckRecord | None:
    """The outcomes of the last checks, whatever they were of; None if there are none."""
    record = parse_state(CheckRecord, read_json(run.folder.checks))
    if record is None:
        return None
    checks = [Outcome(**check) for check in record.checks]  # type: ignore[arg-type]
    return CheckRecord(record.table, record.version, record.inputs, record.metrics, checks)


def current_checks(run: Run) -> CheckRecord | None:
    """The outcomes for the table as it is and all that they depend on; None if there are none."""
    record, state = read_checks(run), table_state(run)
    if record is None or state is None or not record.is_of(state):
        return None
    return record if record.inputs == _inputs(run, state) else None


def _inputs(run: Run, state: TableState) -> str:
    files = []
    for path in evaluation_files(run):
        with contextlib.suppress(OSError):
            stat = path.stat()
            files.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
    partitions, spec = json.dumps(state.partitions, sort_keys=True), run.spec
    options = (spec.model, *spec.compression, spec.store, spec.preprocessing, spec.evaluation)
    return fingerprint(partitions, *options, spec.search, str(spec.seed), str(spec.budget), *files)


def _report(record: CheckRecord, changed: bool) -> StepReport:
    passed = sum(check.passed for check in record.checks)
    statistics = {"checks": len(record.checks), "passed": passed, **record.metrics}
    return StepReport(ChecksStep.name, changed, statistics)

"""What a process does that a server starts for long work: `python -m embedding_pipelines.serving.work
HOME RUN LOCK`, where LOCK is the number of the locked file that it keeps open."""

import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from embedding_pipelines.errors import EmbeddingPipelinesError, describe_os_error
from embedding_pipelines.progress import Progress, Recorder, Silent
from embedding_pipelines.releases import read_releases
from embedding_pipelines.run import Run
from embedding_pipelines.serving.runs import Record, Runs
from embedding_pipelines.serving.wire import KEY_VARIABLE
from embedding_pipelines.spec.load import find_pipeline, parse_model
from embedding_pipelines.spec.pipeline import PipelineSpec
from embedding_pipelines.storage.warehouse import Warehouse

STOPPED = "It was stopped. What was embedded is kept: the next run goes on from there."
FAULT = "This should not happen; the traceback is in"


def main(home: Path, run_id: str, lock: int) -> int:
    """Do what the record of a run says, and write into it how it ended, then close the lock; the
    exit code."""
    runs = Runs(home)
    record = runs.read(run_id)
    runs.write(record.model_copy(update={"options": {}}))
    try:
        record.problem, record.result = perform(home, record)
    except EmbeddingPipelinesError as error:
        record.problem = str(error)
    except OSError as error:
        record.problem = describe_os_error(error)
    except KeyboardInterrupt:
        record.problem = STOPPED
    except BaseException as error:
        kind = type(error).__name__
        record.problem = f"{kind}: {error}. {FAULT} {runs.folder / f'{run_id}.log'}."
        raise
    finally:
        record.ended_at, record.options = datetime.now(UTC), {}
        runs.write(record)
        os.close(lock)  # the rest of the process keeps nobody waiting
    return 1 if record.problem else 0


def perform(home: Path, record: Record) -> tuple[str, dict[str, Any]]:
    """Why a piece of work failed, empty if it did not, and what came of it. What the command line
    does without Dagster needs none here."""
    if record.kind in WITHOUT_DAGSTER:
        return "", WITHOUT_DAGSTER[record.kind](home, record)
    from embedding_pipelines.orchestration.launch import run_pipeline, run_work

    if record.kind in ("run", "release"):
        began, progress = time.perf_counter(), Recorder()
        spec = find_pipeline(record.pipeline, home)
        reason = record.options.get("reason", "")
        problem = run_pipeline(home, spec, progress, reason, run_id=record.run_id).problem
        figures = progress.as_json() | {"seconds": round(time.perf_counter() - began, 3)}
        return problem, _live(home, record.pipeline) | figures
    result = dict[str, Any]()

    def work(progress: Progress) -> None:
        result.update(WORK[record.kind](home, record, progress))

    outcome = run_work(home, record.pipeline, record.kind, record.run_id, work)
    return outcome.problem, result


def _optimize(home: Path, record: Record, progress: Progress) -> dict[str, Any]:
    """Measure, write into the file, release. Raises EmbeddingPipelinesError, and then the file is as
    it was."""
    from embedding_pipelines.optimize.adopt import adopt
    from embedding_pipelines.optimize.optimize import Goal, optimize_pipeline
    from embedding_pipelines.orchestration.launch import run_pipeline

    def release(spec: PipelineSpec) -> str:
        return run_pipeline(home, spec, progress).problem

    spec, warehouse = find_pipeline(record.pipeline, home), Warehouse(home)
    goal = Goal(**{**record.options, "methods": tuple(record.options["methods"])})
    has_run = warehouse.pipeline(spec.name).releases.exists()
    if not has_run and (problem := release(spec)):
        raise EmbeddingPipelinesError(problem)
    with Run(spec, warehouse, progress) as run:
        outcome = optimize_pipeline(run, goal)
    if outcome.problem:
        raise EmbeddingPipelinesError(outcome.problem)
    adopt(home, outcome, release)
    optimized = outcome.spec.optimized
    return {
        "optimized": optimized and optimized.model_dump(mode="json"),
        "evidence": outcome.evidence,
        **_live(home, record.pipeline),
    }


def _compare(home: Path, record: Record, progress: Progress) -> dict[str, Any]:
    """Measure models; nothing of the pipeline changes."""
    from embedding_pipelines.compare.compare import compare_models, write_comparison

    spec = find_pipeline(record.pipeline, home)
    models = [parse_model(text) for text in record.options["models"]]
    with Run(spec, Warehouse(home), progress) as run:
        comparison = compare_models(run, models, record.options["documents"])
    write_comparison(run.warehouse, comparison)
    return asdict(comparison)


def _deploy(home: Path, record: Record, progress: Progress) -> dict[str, Any]:
    from embedding_pipelines.serving.targets.deploy import deploy

    deployment = deploy(
        Warehouse(home),
        record.pipeline,
        record.options["endpoint"],
        key=_key(record),
        progress=progress,
    )
    return deployment.model_dump(mode="json")


def _undeploy(home: Path, record: Record, progress: Progress) -> dict[str, Any]:
    from embedding_pipelines.serving.targets.deploy import undeploy

    name, endpoint = record.pipeline, record.options["endpoint"]
    return {"removed": undeploy(Warehouse(home), name, endpoint, key=_key(record))}


def _rollback(home: Path, record: Record) -> dict[str, Any]:
    from embedding_pipelines.remote import rollback

    before, now = rollback(Warehouse(home), record.pipeline, record.options["to"])
    return {"before": before.number, "live": now.number, "rows": now.rows}


def _forget(home: Path, record: Record) -> dict[str, Any]:
    """Erase documents, or let them come back."""
    from embedding_pipelines.forget.forget import allow_again, forget_newest
    from embedding_pipelines.orchestration.erasure import delete_runs_that_quote

    name, ids, sources = record.pipeline, record.options["ids"], record.options["sources"]
    with Run(find_pipeline(name, home), Warehouse(home), Silent()) as run:
        if record.options["undo"]:
            return {"undone": allow_again(run, ids, sources)}
        erase_history = partial(delete_runs_that_quote, home, name)
        receipt = forget_newest(run, ids, sources, erase_history)
    # Without where the home folder is, which is nobody's business far away.
    notes = [note.replace(f"{home}/", "") for note in receipt.notes]
    return asdict(receipt) | {"notes": notes, "path": receipt.path.removeprefix(f"{home}/")}


def _plan(home: Path, record: Record) -> dict[str, Any]:
    from embedding_pipelines.plan import plan_of

    return asdict(plan_of(find_pipeline(record.pipeline, home), Warehouse(home)))


def _key(record: Record) -> str:
    """What an endpoint is sent: the server's own key, if whoever asked for the work has it."""
    return os.environ.get(KEY_VARIABLE, "") if record.options.get("sends_key") else ""


WORK: Mapping[str, Callable[[Path, Record, Progress], dict[str, Any]]] = MappingProxyType(
    {"optimize": _optimize, "compare": _compare, "deploy": _deploy, "undeploy": _undeploy}
)


WITHOUT_DAGSTER: Mapping[str, Callable[[Path, Record], dict[str, Any]]] = MappingProxyType(
    {"rollback": _rollback, "forget": _forget, "plan": _plan}
)


def _live(home: Path, name: str) -> dict[str, Any]:
    releases = read_releases(Warehouse(home).pipeline(name))
    live = releases.get(releases.live)
    return {"release": live.number, "rows": live.rows} if live else {}


if __name__ == "__main__":
    _home, _run_id, _lock = sys.argv[1:]
    os.set_inheritable(int(_lock), False)  # processes of this one may outlive it
    raise SystemExit(main(Path(_home), _run_id, int(_lock)))

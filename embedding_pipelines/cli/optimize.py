"""The command `optimize`: measure a compression, write it into the pipeline's file, and run it."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    OptionalName,
    Outcomes,
    Output,
    PipelineId,
    Problem,
    ServerUrl,
    load_spec,
    one_of,
    open_run,
    open_warehouse,
    options,
)
from embedding_pipelines.cli.run import run_one
from embedding_pipelines.cli.terminal import TerminalProgress, figure, make_console, print_table
from embedding_pipelines.environment import home as home_folder

if TYPE_CHECKING:
    from embedding_pipelines.optimize.candidates import Point
    from embedding_pipelines.optimize.optimize import Goal, OptimizeResult
    from embedding_pipelines.spec.pipeline import PipelineSpec

AUTO_FLOOR = 0.99
METHODS = (
    "pca, truncate, float16, int8 (or quantization) or binary; repeat to build a chain. Or auto."
)

app = typer.Typer()


@app.command()
def optimize(
    method: Annotated[list[str], typer.Option(metavar="METHOD", help=METHODS)],
    name: OptionalName = None,
    pipeline_id: PipelineId = None,
    dimensions: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="How many pca or truncate keep.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help=f"The recall@10 to prove (default: none; for auto {AUTO_FLOOR}).",
        ),
    ] = None,
    max_ms: Annotated[
        float, typer.Option(min=0, metavar="NUMBER", help="Latency budget (median) for auto.")
    ] = 500.0,
    server: ServerUrl = None,
) -> Outcomes:
    """Make vectors smaller, at a measured cost.

    Recall@10 is the share of the exact ten nearest, in the model's own space, that searches still
    return. A compression that keeps the floor, with 95% confidence, goes into the pipeline file
    with its evidence, and the pipeline runs; else nothing changes. Without a floor, it
    measures the methods you name and takes them as they are. A pipeline that never ran is run first.
    """
    from embedding_pipelines.optimize.optimize import Goal

    name = one_of(name, pipeline_id)
    if server:
        yield from remote.optimize(server, name, method, dimensions, floor, max_ms)
        return
    spec = load_spec(name)
    floor = AUTO_FLOOR if floor is None and method == ["auto"] else floor
    with options():
        goal = Goal(tuple(method), dimensions, floor, max_ms)
    try:
        yield from _optimize(spec, goal)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"The file of {spec.name!r} is as it was.") from None


def _optimize(spec: "PipelineSpec", goal: "Goal") -> Outcomes:
    from embedding_pipelines.optimize.adopt import adopt
    from embedding_pipelines.optimize.optimize import optimize_pipeline

    rows = list[dict[str, Any]]()

    def release(spec: "PipelineSpec") -> str:
        row, problem = run_one(spec)
        rows.append(row)
        return problem

    has_run = open_warehouse().pipeline(spec.name).releases.exists()
    if not has_run and (problem := release(spec)):
        yield Problem(f"{spec.name}: {problem}", spec.name)
        return
    with TerminalProgress(make_console(), spec.name) as progress, open_run(spec, progress) as run:
        outcome = optimize_pipeline(run, goal)
    result = {"pipeline": spec.name, "optimized": None, "evidence": outcome.evidence}
    yield Output([result] if outcome.problem else [], partial(_show, outcome))
    if outcome.problem:
        yield Problem(outcome.problem, spec.name)
        return
    adopt(home_folder(), outcome, release)
    if outcome.spec.optimized is not None:
        result["optimized"] = outcome.spec.optimized.model_dump(mode="json")
    yield Output([{**result, "run": rows[-1]}])


def _show(outcome: "OptimizeResult") -> None:
    front = [point for point in outcome.points if point.on_front]
    if front:
        front.sort(key=lambda point: point.bytes_per_vector)
        print_table(make_console(), [_row(point) for point in front])
    optimized = outcome.spec.optimized
    if optimized is not None and not outcome.problem:
        print(
            f"{optimized.bytes_per_vector} bytes a vector on disk, "
            f"{optimized.times_smaller} times less than float32 alone."
        )


def _row(point: "Point") -> dict[str, Any]:
    from embedding_pipelines.compression.base import as_options, describe_chain

    return {
        "compression": describe_chain(as_options(point.compression)),
        "index": point.index + (f" x{point.refine}" if point.refine else ""),
        "bytes": round(point.bytes_per_vector),
        "recall@10": figure(point.recall_at_10, ".4f"),
        "at_least": figure(point.lower_bound, ".4f"),
        "held_out": figure(point.held_out_recall, ".4f"),
        "p50_ms": figure(point.p50_ms, ".1f"),
        "p95_ms": figure(point.p95_ms, ".1f"),
        "": "chosen" if point.chosen else "",
    }

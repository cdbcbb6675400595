"""The command `optimize`: measure a compression, write it into the pipeline file, run the
pipeline."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli.common import (
    AsJson,
    complain,
    emit,
    open_run,
    run_one,
    stopped,
    valid_specs,
)
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, ReleaseError

if TYPE_CHECKING:
    from embedding_pipelines.optimize.candidates import Point
    from embedding_pipelines.optimize.optimizer import Tuned, Wish
    from embedding_pipelines.spec.pipeline import PipelineSpec

FLOOR = 0.99  # of what `auto` finds, if the user names none
METHODS = "pca, truncate, float16, int8 (or quantization), binary; again for what follows it; or auto, which finds one."


def add_to(app: typer.Typer) -> None:
    app.command()(optimize)


def optimize(
    method: Annotated[list[str], typer.Option(metavar="METHOD", help=METHODS)],
    name: Annotated[
        str | None, typer.Argument(metavar="PIPELINE", help="Its name or number.")
    ] = None,
    pipeline_id: Annotated[
        str | None, typer.Option(metavar="PIPELINE", help="The same as an option.")
    ] = None,
    dimensions: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="What pca or truncate keep.")
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Least recall@10 that must be proven; for auto 0.99.",
        ),
    ] = None,
    max_ms: Annotated[
        float,
        typer.Option(min=0, metavar="NUMBER", help="How long a median search may take after auto."),
    ] = 500.0,
    as_json: AsJson = False,
) -> None:
    """Make vectors smaller, once it is measured what that costs.

    Recall@10 is the share of the exact ten nearest, in the model's own space, that searches still
    find. What is proven to keep the floor, with 95% confidence, goes into the pipeline file with
    its evidence, and the pipeline is run. Otherwise nothing is changed. Without a floor, what you
    name is measured and taken as it is.
    """
    from embedding_pipelines.optimize.optimizer import Wish

    given = [text for text in (name, pipeline_id) if text is not None]
    if len(given) != 1:
        raise ConfigError("optimize: name one pipeline, as PIPELINE or by --pipeline-id.")
    (spec,) = valid_specs(given)
    floor = FLOOR if floor is None and method == ["auto"] else floor
    wish = Wish(tuple(method), dimensions, floor, max_ms)
    try:
        _optimize(spec, wish, as_json)
    except KeyboardInterrupt:
        stopped(f"The file of {spec.name!r} is as it was.")


def _optimize(spec: "PipelineSpec", wish: "Wish", as_json: bool) -> None:
    from embedding_pipelines.cli.terminal import TerminalProgress, make_console
    from embedding_pipelines.optimize.optimizer import refit, tune
    from embedding_pipelines.spec.edit import edit_pipeline
    from embedding_pipelines.spec.load import pipeline_files
    from embedding_pipelines.steps.codec import unless_it_fails

    with (
        TerminalProgress(make_console(quiet=as_json), spec.name) as progress,
        open_run(spec, progress) as run,
    ):
        tuned = tune(run, wish)
    if not as_json:
        _show(tuned)
    if tuned.problem:
        emit(
            {"error": tuned.problem, **_statistics(spec, tuned)},
            as_json,
            lambda: complain([tuned.problem]),
        )
        raise typer.Exit(1)
    (path,) = [path for path in pipeline_files(home_folder()) if path.stem == spec.name]
    with (
        open_run(tuned.spec) as run,
        edit_pipeline(path, tuned.options, tuned.spec),
        unless_it_fails(run),
    ):
        refit(run)
        result = run_one(tuned.spec, quiet=as_json)
        if result["error"]:
            raise ReleaseError(
                f"{result['error']}\nThe file of {spec.name!r} is as it was, so there is nothing to force "
                "now. To have it all the same, write the compression into the file, run the pipeline, then force it."
            )
    emit({**_statistics(spec, tuned), "run": result}, as_json, lambda: None)


def _statistics(spec: "PipelineSpec", tuned: "Tuned") -> dict[str, Any]:
    optimized = (
        tuned.spec.optimized.model_dump(mode="json")
        if tuned.spec.optimized and not tuned.problem
        else None
    )
    return {"pipeline": spec.name, "optimized": optimized, "evidence": tuned.evidence}


def _show(tuned: "Tuned") -> None:
    from embedding_pipelines.cli.terminal import make_console, print_table

    front = sorted(
        (point for point in tuned.points if point.on_front),
        key=lambda point: point.bytes_per_vector,
    )
    if front:
        print_table(make_console(), [_row(point) for point in front])
    if tuned.spec.optimized is not None and not tuned.problem:
        found = tuned.spec.optimized
        print(
            f"{found.bytes_per_vector} bytes a vector on disk, {found.times_smaller} times less than float32 alone."
        )


def _row(point: "Point") -> dict[str, str]:
    from embedding_pipelines.compression.base import as_options, describe_chain

    figures = {
        "bytes": f"{point.bytes_per_vector:,.0f}",
        "recall@10": _share(point.recall_at_10),
        "at_least": _share(point.lower_bound),
        "held_out": _share(point.held_out_recall),
        "p50_ms": f"{point.p50_ms:.1f}" if point.p50_ms is not None else "-",
        "p95_ms": f"{point.p95_ms:.1f}" if point.p95_ms is not None else "-",
    }
    index = point.index + (f" x{point.refine}" if point.refine else "")
    return {
        "compression": describe_chain(as_options(point.compression)),
        "index": index,
        **figures,
        "": "chosen" if point.chosen else "",
    }


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

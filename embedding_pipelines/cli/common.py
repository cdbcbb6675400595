"""What commands share: find pipelines, run and plan one of them, print results, say what is
wrong."""

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError
from embedding_pipelines.home import pipelines_folder

if TYPE_CHECKING:
    from embedding_pipelines.progress import Progress
    from embedding_pipelines.run import Run
    from embedding_pipelines.spec.pipeline import PipelineSpec


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Name = Annotated[
    str,
    typer.Argument(metavar="PIPELINE", help="Its file's name without the ending, or its number."),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="PIPELINE", help="Pipelines by name or number; else all."),
]


def specs_and_problems(names: list[str] | None) -> tuple[list["PipelineSpec"], list[str]]:
    """The pipelines named, by name or number, or all there are, and what is wrong with the others.

    ConfigError if there is none.
    """
    from embedding_pipelines.spec.ids import find_name
    from embedding_pipelines.spec.load import find_pipeline, read_pipelines

    if not names:
        specs, broken = read_pipelines(home_folder())
        if not specs and not broken:
            raise ConfigError(no_pipelines())
        return list(specs.values()), [str(error) for error in broken.values()]
    found, problems = {}, []
    for name in dict.fromkeys(names):
        try:
            spec = find_pipeline(find_name(home_folder(), name), home_folder())
            found[spec.name] = spec
        except ConfigError as error:
            problems.append(str(error))
    return list(found.values()), problems


def valid_specs(names: list[str] | None) -> list["PipelineSpec"]:
    """As `specs_and_problems`, but any problem is a ConfigError."""
    specs, problems = specs_and_problems(names)
    if problems:
        raise ConfigError("\n".join(problems))
    return specs


def open_run(spec: "PipelineSpec", progress: "Progress | None" = None) -> "Run":
    """A pipeline at work in the home folder's warehouse."""
    from embedding_pipelines.run import Run
    from embedding_pipelines.storage.warehouse import Warehouse

    return Run(spec, Warehouse(home_folder()), progress)


def run_one(spec: "PipelineSpec", quiet: bool, force_reason: str = "") -> dict[str, Any]:
    """Bring a pipeline up to date, with its progress on the terminal; what was done.

    With a reason only what was made before is released, though checks of its quality failed.
    """
    from embedding_pipelines.cli.terminal import TerminalProgress, make_console
    from embedding_pipelines.environment import instance_folder
    from embedding_pipelines.steps.chain import up_to_date

    run_id, problem = None, ""
    with TerminalProgress(make_console(quiet=quiet), spec.name) as progress:
        reports = None
        if not force_reason:
            with open_run(spec) as run:
                reports = up_to_date(run, instance_folder(home_folder()))
        if reports is None:
            from embedding_pipelines.orchestration.launch import run_pipeline

            outcome = run_pipeline(home_folder(), spec, progress, force_reason)
            run_id, problem = outcome.run_id, outcome.problem
        for report in reports or ():
            progress.finish(report)
    steps = [
        {
            "step": report.step,
            "changed": report.changed,
            "seconds": round(report.seconds, 3),
            **report.statistics,
        }
        for report in progress.reports
    ]
    return {
        "pipeline": spec.name,
        "run_id": run_id,
        "error": problem or None,
        "notes": progress.notes,
        "steps": steps,
    }


def stopped(sentence: str) -> NoReturn:
    """End what Ctrl-C has stopped, with exit code 130."""
    from embedding_pipelines.embedding.workers import is_busy

    print(f"Stopped. {sentence}", file=sys.stderr)
    if is_busy():  # with a call that is out the interpreter cannot be taken down in order
        sys.stdout.flush()
        os._exit(130)
    raise typer.Exit(130) from None


def plan_one(spec: "PipelineSpec") -> dict[str, Any]:
    """What a run of a pipeline would do, or the error that stands in its way."""
    from embedding_pipelines.plan import plan

    try:
        with open_run(spec) as run:
            return {**vars(plan(run)), "error": None}
    except EmbeddingPipelinesError as error:
        return {"pipeline": spec.name, "error": str(error)}


def evaluation_problem(spec: "PipelineSpec") -> str:
    """What is wrong with the files that `evaluation:` names, if something is."""
    if not (spec.evaluation.queries or spec.evaluation.pairs):
        return ""
    from embedding_pipelines.quality.queries import read_pairs, read_qrels

    run = open_run(spec)
    try:
        read_qrels(run)
        read_pairs(run)
    except EmbeddingPipelinesError as error:
        return f"{spec.name}: {error}"
    return ""


def known_name(text: str) -> str:
    """The pipeline that is meant by its name or number; ConfigError if nobody knows it.

    What was released once needs no pipeline file any more.
    """
    from embedding_pipelines.spec.ids import find_name
    from embedding_pipelines.spec.load import find_pipeline
    from embedding_pipelines.storage.warehouse import Warehouse

    name = find_name(home_folder(), text)
    if not Warehouse(home_folder()).pipeline(name).releases.exists():
        find_pipeline(name, home_folder())
    return name


def no_pipelines() -> str:
    return f"There are no pipelines in {pipelines_folder(home_folder())}. `embedding-pipelines example` makes two."


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        show()


def complain(problems: list[str]) -> None:
    from embedding_pipelines.cli.terminal import make_console

    for problem in problems:
        make_console(stderr=True).print(f"error: {problem}", style="red", soft_wrap=True)


def fail(problem: str) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": problem}, ensure_ascii=False))
    else:
        complain([problem])
    sys.exit(1)

"""The command `doctor`: tests all that a pipeline depends on, mends it, or looks at any table."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli.common import (
    Files,
    Outcomes,
    Output,
    Problem,
    find_files,
    open_run,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import TerminalProgress, make_console, print_words, say
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.environment import instance_folder
from embedding_pipelines.errors import EmbeddingPipelinesError, describe_os_error

if TYPE_CHECKING:
    from embedding_pipelines.doctor.examine import Finding
    from embedding_pipelines.spec.load import Draft

app = typer.Typer()


@app.command()
def doctor(
    names: Files = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what needs no text to be embedded.")
    ] = False,
    table: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Look at any LanceDB table, a folder NAME.lance."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="With --table: compare models on its texts, as `compare` does, and its vectors.",
        ),
    ] = None,
) -> Outcomes:
    """Test a pipeline's file, source, model and stored data.

    The model is sent two short texts, and every stored byte is read. With --repair damage is mended
    first, from copies, the bucket, shards and tables; then it says what the next run does. With
    --table it looks at a table that anybody made, and writes nothing; with --model it also says which
    model finds more in it, and files their vectors in the cache.
    """
    from embedding_pipelines.doctor.examine import examine, examine_cache
    from embedding_pipelines.spec.load import read_draft

    if table is not None:
        if names or repair:
            words = "`--table` only looks: name no pipelines, and leave --repair out."
            raise typer.BadParameter(words)
        yield from _look_at(table)
        if models:
            yield from _compare_on(table, models)
        return
    if models:
        raise typer.BadParameter("`--model` is for --table. For a pipeline there is `compare`.")
    paths, problems = find_files(names)
    drafts = {path: read_draft(path) for path in paths}
    if repair:
        yield from _mend(drafts.values())
    for path, draft in drafts.items():
        findings = list[dict[str, Any]]()
        yield from _shown(path.stem, examine(draft, open_warehouse()), findings)
        if repair and draft.spec is not None:
            yield from _say_next(draft)
        yield _result({"pipeline": path.stem}, findings)
        problems += _problems(path.stem, findings)
    findings = []
    yield from _shown("all", [examine_cache(open_warehouse())], findings)
    yield _result({"pipeline": None}, findings)
    problems += _problems(None, findings)
    yield from problems


def _look_at(path: Path) -> Outcomes:
    from embedding_pipelines.doctor.table import examine_table

    findings = list[dict[str, Any]]()
    yield from _shown(path.stem, examine_table(path.expanduser()), findings)
    yield _result({"table": str(path)}, findings)
    for problem in _problems(None, findings):
        yield Problem(f"{path}: {problem.error}")


def _compare_on(path: Path, models: list[str]) -> Outcomes:
    """Each model on the table's texts, and asked for the table's own vectors."""
    from embedding_pipelines.cli.compare import show_comparison
    from embedding_pipelines.compare.compare import compare_table
    from embedding_pipelines.spec.load import parse_model

    options = [parse_model(text) for text in models]
    with TerminalProgress(make_console(stderr=True), path.stem) as progress:
        comparison = compare_table(home_folder(), path.expanduser(), options, progress)
    yield Output([asdict(comparison)], partial(show_comparison, comparison))


def _mend(drafts: Iterable["Draft"]) -> Outcomes:
    """Mend the cache, each pipeline, and what Dagster has on record of runs that died."""
    from embedding_pipelines.doctor.repair import mend, mend_cache
    from embedding_pipelines.orchestration.dead_runs import end_dead_runs
    from embedding_pipelines.orchestration.instance import open_instance

    warehouse, specs = open_warehouse(), [draft.spec for draft in drafts if draft.spec is not None]
    mended = list[tuple[str | None, str]]()
    for name, sentences in (
        (None, mend_cache(warehouse, specs)),
        *((spec.name, mend(spec, warehouse)) for spec in specs),
    ):
        try:
            for sentence in sentences:
                mended.append((name, sentence))
                line = f"{name or 'all'} mended: {sentence}"
                yield Output([], partial(print_words, make_console(), line))
        except (EmbeddingPipelinesError, OSError) as error:
            words = describe_os_error(error) if isinstance(error, OSError) else error
            yield Problem(f"{name or 'cache'}: not mended: {words}", name)
    if (instance_folder(home_folder()) / "dagster.yaml").is_file():
        with open_instance(home_folder()) as instance:
            for run in end_dead_runs(instance, warehouse):
                mended.append((None, f"run {run} had died, and is marked as failed in Dagster."))
                yield Output([], partial(say, f"all mended: {mended[-1][1]}"))
    yield Output([{"mended": [{"pipeline": name, "done": words} for name, words in mended]}])


def _say_next(draft: "Draft") -> Outcomes:
    """What the next run of a pipeline does."""
    from embedding_pipelines.cli.run import plan_in_words
    from embedding_pipelines.plan import plan

    assert draft.spec is not None
    try:
        with open_run(draft.spec) as run:
            lines = plan_in_words(plan(run))
    except EmbeddingPipelinesError as error:
        lines = [f"{draft.spec.name}: {error}"]
    yield Output([], partial(say, "The next run:", *lines))


def _shown(
    name: str, found: Iterable["Finding"], findings: list[dict[str, Any]]
) -> Iterator[Output]:
    """A line for each finding, as it comes; all of them go to `findings`."""
    console = make_console()
    for finding in found:
        findings.append(asdict(finding))
        mark, style = ("ok", "") if finding.is_well else ("NOT WELL", "red")
        line = f"{name} {finding.what:<9} {mark}: {finding.sentence}"
        yield Output([], partial(print_words, console, line, style))


def _result(about: dict[str, Any], findings: list[dict[str, Any]]) -> Output:
    is_well = all(finding["is_well"] for finding in findings)
    return Output([{**about, "well": is_well, "findings": findings}])


def _problems(name: str | None, findings: list[dict[str, Any]]) -> list[Problem]:
    bad = [finding["what"] for finding in findings if not finding["is_well"]]
    start = f"{name}: " if name else ""
    return [Problem(f"{start}not well: {', '.join(bad)}.", name)] if bad else []

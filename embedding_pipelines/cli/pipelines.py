"""Commands that say how pipelines stand: `list`, `status` and `validate`."""

import sys
from functools import partial
from typing import TYPE_CHECKING

import typer

from embedding_pipelines.cli.common import (
    Names,
    Outcomes,
    Output,
    Problem,
    load_specs,
    no_pipelines,
    open_run,
)
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import EmbeddingPipelinesError

if TYPE_CHECKING:
    from embedding_pipelines.spec.pipeline import PipelineSpec

LIST_COLUMNS = ("id", "pipeline", "status", "documents", "live_release", "schedule", "model")
OPTIONAL = ("rejected", "rejected_texts", "live_model", "held_back")  # in a status

app = typer.Typer()


@app.command("list")
def list_pipelines() -> Outcomes:
    """List the pipelines, broken ones included."""
    from embedding_pipelines.cli.terminal import make_console, print_table
    from embedding_pipelines.spec.ids import pipeline_ids
    from embedding_pipelines.spec.load import read_pipelines
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.storage.warehouse import Warehouse

    home = home_folder()
    specs, broken = read_pipelines(home)
    ids, warehouse = pipeline_ids(home), Warehouse(home)
    rows = []
    for spec in specs.values():
        row = pipeline_status(spec, warehouse)
        rows.append({name: row[name] for name in LIST_COLUMNS} | {"problem": None})
    for path, error in broken.items():
        row = {"id": ids.get(path.stem), "pipeline": path.stem, "status": "broken"}
        rows.append(dict.fromkeys(LIST_COLUMNS) | row | {"problem": str(error)})
    rows.sort(key=lambda row: row["pipeline"])

    def show() -> None:
        if rows:
            table = [{name: row[name] for name in LIST_COLUMNS} for row in rows]
            print_table(make_console(), table)
        else:
            print(no_pipelines())
        if broken:
            print("Run `embedding-pipelines validate` to see the errors.", file=sys.stderr)

    yield Output(rows, show)


@app.command()
def status(names: Names = None) -> Outcomes:
    """Show rows, releases and changed files of pipelines."""
    from embedding_pipelines.cli.terminal import make_console, print_statistics
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.storage.warehouse import Warehouse

    specs, problems = load_specs(names)
    for number, spec in enumerate(specs):
        row = pipeline_status(spec, Warehouse(home_folder()))
        absent = {name for name in OPTIONAL if not row[name]}
        absent |= {"pipeline", "override", *(f"{name}_table" for name in absent)}
        statistics = {name: value for name, value in row.items() if name not in absent}
        title = f"\n{spec.name}" if number else spec.name
        yield Output([row], partial(print_statistics, make_console(), title, statistics))
    yield from problems


@app.command()
def validate(names: Names = None) -> Outcomes:
    """Check pipeline files and name every mistake.

    The files that `evaluation:` names are checked too.
    """
    specs, problems = load_specs(names)
    for spec in specs:
        problem = _evaluation_problem(spec)
        if problem:
            problems.append(Problem(f"{spec.name}: {problem}", spec.name))
        else:
            result = {"pipeline": spec.name, "valid": True}
            yield Output([result], partial(print, f"{spec.name}: valid"))
    yield from problems


def _evaluation_problem(spec: "PipelineSpec") -> str:
    """What is wrong with the files that `evaluation:` names, if something is."""
    if not (spec.evaluation.queries or spec.evaluation.pairs):
        return ""
    from embedding_pipelines.quality.queries import read_pairs, read_qrels

    run = open_run(spec)
    try:
        read_qrels(run)
        read_pairs(run)
    except EmbeddingPipelinesError as error:
        return str(error)
    return ""

"""The command line: parse, call the core, print. `--json` on every command.

Exit code 0: done; 1: something a user can mend, said in one readable error; 2: a wrong command;
130: Ctrl-C. Results go to stdout, errors to stderr; with `--json` an error is `{"error": …}` on
stdout.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from embedding_pipelines import __version__
from embedding_pipelines.cli import diff as cli_diff
from embedding_pipelines.cli import explore as cli_explore
from embedding_pipelines.cli import optimize as cli_optimize
from embedding_pipelines.cli import release as cli_release
from embedding_pipelines.cli import report as cli_report
from embedding_pipelines.cli.common import (
    AsJson,
    Name,
    Names,
    complain,
    emit,
    evaluation_problem,
    fail,
    known_name,
    no_pipelines,
    open_run,
    plan_one,
    run_one,
    specs_and_problems,
    stopped,
    valid_specs,
)
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError
from embedding_pipelines.home import pipelines_folder

app = typer.Typer(
    help="Keep a released, checked, searchable vector store true to changing data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _options(
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where pipelines/ and data/ are (default: $EMBEDDING_PIPELINES_HOME, else here).",
        ),
    ] = None,
) -> None:
    if home is not None:
        os.environ[HOME_VARIABLE] = str(home.expanduser().resolve())
    if not home_folder().is_dir():
        where = "--home" if home is not None else HOME_VARIABLE
        raise ConfigError(f"{where}: there is no folder {str(home_folder())!r}.")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    emit({"version": __version__}, as_json, lambda: print(__version__))


@app.command()
def example(as_json: AsJson = False) -> None:
    """Write two example pipelines and their data.

    The data is made from this machine's own Python: its docstrings, and Unicode's characters.
    """
    from embedding_pipelines.cli.terminal import counted
    from embedding_pipelines.examples import write_examples

    home = home_folder()
    written = write_examples(home)
    files = [
        {"file": str(entry.path), "rows": entry.rows, "changed": entry.changed} for entry in written
    ]

    def show() -> None:
        data = [entry.rows for entry in written if entry.rows]
        print(f"{counted(sum(data), 'row')} in {counted(len(data), 'file')} below {home / 'data'}")
        print(
            f"pipelines stdlib and unicode in {pipelines_folder(home)}. Next: embedding-pipelines run"
        )

    emit(files, as_json, show)


@app.command()
def validate(names: Names = None, as_json: AsJson = False) -> None:
    """Check pipeline files: every mistake, with its line. The files that `evaluation:` names are
    read too."""
    read, problems = specs_and_problems(names)
    wrong = {spec.name: problem for spec in read if (problem := evaluation_problem(spec))}
    specs, problems = (
        [spec for spec in read if spec.name not in wrong],
        [*problems, *wrong.values()],
    )

    def show() -> None:
        for spec in specs:
            print(f"{spec.name}: valid")
        complain(problems)

    emit({"valid": [spec.name for spec in specs], "problems": problems}, as_json, show)
    if problems:
        raise typer.Exit(1)


@app.command()
def run(
    names: Names = None,
    retry_rejected: Annotated[
        bool,
        typer.Option("--retry-rejected", help="Ask again for texts that the provider has refused."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read what changed, embed what is new, check, release.

    It may be stopped at any time: what was embedded is kept, and the next run goes on from there.
    """
    specs, problems = specs_and_problems(names)
    if problems and names:
        raise ConfigError("\n".join(problems))
    if not as_json:
        complain(problems)
    if retry_rejected:
        from embedding_pipelines.steps.embeddings import retry_rejected as retry

        for spec in specs:
            retry(open_run(spec))
    results = []
    for spec in specs:
        try:
            results.append(run_one(spec, quiet=as_json))
        except KeyboardInterrupt:
            stopped("What was embedded is kept: the same command goes on from there.")
        if results[-1]["error"] and not as_json:
            complain([f"{spec.name}: {results[-1]['error']}"])
    results += [
        {"pipeline": None, "error": problem} for problem in problems
    ]  # files that are broken
    emit(results, as_json, lambda: None)
    if any(result["error"] for result in results):
        raise typer.Exit(1)


@app.command()
def plan(names: Names = None, as_json: AsJson = False) -> None:
    """Say what a run would do, cost and take, before it is done.

    Documents are read and cut as in a run, which then finds that done; no provider is called.
    """
    from embedding_pipelines.cli.terminal import make_console, print_statistics

    specs = valid_specs(names)
    plans = [plan_one(spec) for spec in specs]

    def show() -> None:
        for row in plans:
            if row["error"]:
                complain([f"{row['pipeline']}: {row['error']}"])
            else:
                statistics = {
                    name: value for name, value in row.items() if name not in ("pipeline", "error")
                }
                print_statistics(make_console(), row["pipeline"], statistics)

    emit(plans, as_json, show)
    if any(row["error"] for row in plans):
        raise typer.Exit(1)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List models that are known by a short name or by their price."""
    from embedding_pipelines.catalogue import PRICES_ARE_OF, catalogue
    from embedding_pipelines.cli.terminal import make_console, print_table

    rows, day = catalogue(), PRICES_ARE_OF.isoformat()

    def show() -> None:
        print_table(
            make_console(), [row | {"revision": str(row["revision"] or "")[:8]} for row in rows]
        )
        print(f"Prices are those of {day}, in USD per million tokens.")

    emit({"prices_are_of": day, "models": rows}, as_json, show)


@app.command()
def status(names: Names = None, as_json: AsJson = False) -> None:
    """Show rows, releases and changed files of pipelines."""
    from embedding_pipelines.cli.terminal import make_console, print_statistics
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.storage.warehouse import Warehouse

    specs, problems = specs_and_problems(names)
    found = [pipeline_status(spec, Warehouse(home_folder())) for spec in specs]

    def show() -> None:
        for number, row in enumerate(found):
            empty = {name for name in ("rejected", "rejected_texts", "held_back") if not row[name]}
            left_out = {"pipeline", *(f"{name}_table" for name in empty)}
            if number:
                print()
            statistics = {name: value for name, value in row.items() if name not in left_out}
            print_statistics(make_console(), row["pipeline"], statistics)
        complain(problems)

    emit({"pipelines": found, "problems": problems}, as_json, show)
    if problems:
        raise typer.Exit(1)


@app.command("list")
def list_pipelines(as_json: AsJson = False) -> None:
    """List the pipelines, broken ones included."""
    from embedding_pipelines.cli.terminal import make_console, print_table
    from embedding_pipelines.spec.ids import pipeline_ids
    from embedding_pipelines.spec.load import read_pipelines
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.storage.warehouse import Warehouse

    specs, broken = read_pipelines(home_folder())
    ids = pipeline_ids(home_folder())
    columns = ("id", "pipeline", "status", "documents", "live_release", "schedule", "model")
    found = [pipeline_status(spec, Warehouse(home_folder())) for spec in specs.values()]
    rows = [{name: row[name] for name in columns} | {"problem": None} for row in found]
    for path, error in broken.items():
        said = {
            "id": ids.get(path.stem),
            "pipeline": path.stem,
            "status": "broken",
            "problem": str(error),
        }
        rows.append(dict.fromkeys(columns) | said)
    rows.sort(key=lambda row: row["pipeline"])

    def show() -> None:
        if rows:
            print_table(make_console(), [{name: row[name] for name in columns} for row in rows])
        else:
            print(no_pipelines())
        if broken:
            print("What is broken says: embedding-pipelines validate", file=sys.stderr)

    emit(rows, as_json, show)


@app.command()
def search(
    name: Name,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="What to look for, in plain words.")
    ],
    k: Annotated[int, typer.Option("-k", metavar="NUMBER", help="How many hits.")] = 10,
    filter: Annotated[
        str | None,
        typer.Option(metavar="SQL", help="Condition on metadata, e.g. \"module = 'shutil'\"."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the live release of a pipeline."""
    from embedding_pipelines.cli.terminal import make_console, print_hits
    from embedding_pipelines.search import search as run_search

    name = known_name(name)
    result = run_search(home_folder(), name, query, k, filter)
    emit(result.model_dump(mode="json"), as_json, lambda: print_hits(make_console(), result))


for commands in (cli_release, cli_optimize, cli_report, cli_diff, cli_explore):
    commands.add_to(app)


def main() -> None:
    """The console script: errors a user can mend become one sentence and exit code 1."""
    try:
        app(prog_name="embedding-pipelines")
    except EmbeddingPipelinesError as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}.")

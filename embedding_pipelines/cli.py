"""The command line: parse, call the core, print. `--json` on every command; exit code 1 and one readable
error for what a user can get wrong, 2 for a wrong command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from embedding_pipelines import __version__
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError
from embedding_pipelines.home import home as home_folder

app = typer.Typer(
    help="Keep a published, measured, searchable vector store true to changing data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
out, err = Console(), Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Name = Annotated[str, typer.Argument(help="The pipeline: its file's name without the ending.")]
Names = Annotated[list[str] | None, typer.Argument(help="Pipelines by name; all of them if none is named.")]


@app.callback()
def _options(
    home: Annotated[
        Path | None,
        typer.Option(help="Folder with pipelines/ and data/ (default: $EMBEDDING_PIPELINES_HOME, else here)."),
    ] = None,
) -> None:
    if home is not None:
        import os

        if not home.is_dir():
            raise ConfigError(f"--home {str(home)!r}: there is no such folder.")
        os.environ["EMBEDDING_PIPELINES_HOME"] = str(home.resolve())


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version."""
    _print({"version": __version__}, as_json, lambda value: out.print(value["version"], highlight=False))


@app.command()
def example(as_json: AsJson = False) -> None:
    """Write two example pipelines, and their data from this machine's own Python."""
    from embedding_pipelines.examples import write_examples

    written = [{"file": str(entry.path), "rows": entry.rows} for entry in write_examples(home_folder())]

    def show(rows: list[dict[str, Any]]) -> None:
        total = sum(row["rows"] or 0 for row in rows)
        out.print(f"{len(rows)} files, {total:,} rows below {home_folder()}", highlight=False, soft_wrap=True)

    _print(written, as_json, show)


@app.command()
def validate(names: Names = None, as_json: AsJson = False) -> None:
    """Check pipeline files: every mistake at once, with its line."""
    from embedding_pipelines.pipeline_files import find_pipeline, pipeline_files, read_pipelines

    home = home_folder()
    if names:
        checked, problems = [find_pipeline(name, home).name for name in names], []
    else:
        if not pipeline_files(home):
            raise ConfigError(
                f"There are no pipelines in {home / 'pipelines'}. `embedding-pipelines example` makes two."
            )
        specs, broken = read_pipelines(home)
        checked, problems = list(specs), [str(error) for error in broken.values()]

    def show(value: dict[str, Any]) -> None:
        for name in value["valid"]:
            out.print(f"{name}: valid", highlight=False)
        for problem in value["problems"]:
            err.print(f"error: {escape(problem)}", style="red", highlight=False, soft_wrap=True)

    _print({"valid": checked, "problems": problems}, as_json, show)
    if problems:
        raise typer.Exit(1)


@app.command()
def run(names: Names = None, as_json: AsJson = False) -> None:
    """Bring pipelines up to date: read what changed, embed what is new, check, release."""
    from embedding_pipelines.orchestration.launch import run_pipeline
    from embedding_pipelines.terminal import TerminalProgress

    home = home_folder()
    specs = _specs(names, home)
    results = []
    for spec in specs:
        console = Console(quiet=True) if as_json else out
        with TerminalProgress(console, spec.name) as progress:
            outcome = run_pipeline(home, spec, progress)
        steps = [
            {"step": report.step, "changed": report.changed, "seconds": round(report.seconds, 3), **report.facts}
            for report in progress.reports
        ]
        results.append({"pipeline": spec.name, "run_id": outcome.run_id, "error": outcome.problem, "steps": steps})
        if outcome.problem and not as_json:
            err.print(f"error: {spec.name}: {escape(outcome.problem)}", style="red", highlight=False, soft_wrap=True)
    if as_json:
        _print(results, as_json, lambda _: None)
    if any(result["error"] for result in results):
        raise typer.Exit(1)


@app.command()
def status(names: Names = None, as_json: AsJson = False) -> None:
    """Show how pipelines stand: rows of every step, releases, what changed in the source."""
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.terminal import table
    from embedding_pipelines.warehouse import Warehouse

    home = home_folder()
    found = [pipeline_status(spec, Warehouse(home)) for spec in _specs(names, home)]

    def show(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            pairs = [{"": name, " ": value} for name, value in row.items()]
            shown = table("", pairs)
            shown.show_header = False
            out.print(shown)
            out.print()

    _print(found, as_json, show)


@app.command("list")
def list_pipelines(as_json: AsJson = False) -> None:
    """List the pipelines, broken files included."""
    from embedding_pipelines.pipeline_files import read_pipelines
    from embedding_pipelines.status import pipeline_status
    from embedding_pipelines.terminal import table
    from embedding_pipelines.warehouse import Warehouse

    home = home_folder()
    specs, broken = read_pipelines(home)
    columns = ("pipeline", "status", "documents", "live_release", "model", "schedule")
    found = [pipeline_status(spec, Warehouse(home)) for spec in specs.values()]
    rows = [{name: row[name] for name in columns} for row in found]
    rows += [{**dict.fromkeys(columns), "pipeline": path.stem, "status": "broken"} for path in broken]
    empty = f"There are no pipelines in {home / 'pipelines'}. `embedding-pipelines example` makes two."
    _print(rows, as_json, lambda value: out.print(table("", value) if value else empty))


@app.command()
def search(
    name: Name,
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", help="How many hits.")] = 10,
    filter: Annotated[
        str | None, typer.Option(help="SQL condition on metadata columns, e.g. \"module = 'shutil'\".")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search the live release of a pipeline."""
    from embedding_pipelines.pipeline_files import find_pipeline
    from embedding_pipelines.search import search as run_search
    from embedding_pipelines.terminal import print_hits
    from embedding_pipelines.warehouse import Warehouse

    home = home_folder()
    if not Warehouse(home).pipeline(name).releases.exists():
        find_pipeline(name, home)  # a name that nobody knows gets the better error
    result = run_search(home, name, query, k, filter)
    if as_json:
        _print(result.model_dump(mode="json"), as_json, lambda _: None)
    else:
        print_hits(out, result)


@app.command()
def rollback(
    name: Name,
    to: Annotated[int | None, typer.Option(help="Release to go back to (default: the one before).")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an earlier release live again; the next release moves on from there."""
    from embedding_pipelines.pipeline_files import find_pipeline
    from embedding_pipelines.steps.release import rollback as go_back
    from embedding_pipelines.warehouse import Warehouse

    home = home_folder()
    folder = Warehouse(home).pipeline(name)
    if not folder.releases.exists():
        find_pipeline(name, home)
    before, now = go_back(folder, to)
    _print(
        {"pipeline": name, "from": before.number, "live": now.number, "rows": now.rows},
        as_json,
        lambda value: out.print(
            f"{name}: live release {value['from']} -> {value['live']} ({value['rows']:,} rows)", highlight=False
        ),
    )


def _specs(names: list[str] | None, home: Path) -> list[Any]:
    """The named pipelines, or all there are; ConfigError if one is unknown or broken."""
    from embedding_pipelines.pipeline_files import find_pipeline, read_pipelines

    if names:
        return [find_pipeline(name, home) for name in dict.fromkeys(names)]
    specs, broken = read_pipelines(home)
    if broken:
        raise ConfigError("\n".join(str(error) for error in broken.values()))
    if not specs:
        raise ConfigError(f"There are no pipelines in {home / 'pipelines'}. `embedding-pipelines example` makes two.")
    return list(specs.values())


def _print(value: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        show(value)


def main() -> None:
    """The console script: errors a user can mend become one sentence and exit code 1."""
    try:
        app()
    except EmbeddingPipelinesError as error:
        if "--json" in sys.argv:
            print(json.dumps({"error": str(error)}, ensure_ascii=False))
        else:
            err.print(f"error: {escape(str(error))}", style="red", highlight=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        err.print("stopped; what was embedded is kept, run the same command to go on", highlight=False)
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)

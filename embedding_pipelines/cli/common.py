"""What all commands share: their arguments, and the one way that results and errors take out.

A command is a function that yields `Output` and `Problem`. People see each as it comes: results on
stdout, errors on stderr. With `--json`, stdout holds one object, the same for all commands, and of
a wrong command nothing. `--help` describes the object and the exit codes.
"""

import contextlib
import functools
import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli.terminal import make_console, print_words
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError
from embedding_pipelines.home import pipelines_folder

if TYPE_CHECKING:
    from embedding_pipelines.progress import Progress
    from embedding_pipelines.run import Run
    from embedding_pipelines.spec.pipeline import PipelineSpec
    from embedding_pipelines.storage.warehouse import Warehouse

INTERRUPTED = 130  # exit code

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one object: command, ok, results, errors.")
]
Name = Annotated[
    str,
    typer.Argument(metavar="PIPELINE", help="The name of its file without ending, or its number."),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="PIPELINE", help="Pipelines by name or number (default: all)."),
]


@dataclass(frozen=True)
class Output:
    """Results, as JSON values by name, and what people see instead."""

    results: Sequence[Mapping[str, Any]]
    show: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Problem:
    """One error in a sentence that is complete by itself."""

    error: str
    pipeline: str | None = None
    code: int = 1

    def show(self) -> None:
        prefix, style = ("", "") if self.code == INTERRUPTED else ("error: ", "red")
        print_words(make_console(stderr=True), f"{prefix}{self.error}", style)


Outcomes = Iterator[Output | Problem]


def with_json(function: Callable[..., Outcomes]) -> Callable[..., None]:
    """The command for typer: `function` with the option `--json`, and with exit codes."""

    @functools.wraps(function)
    def command(context: typer.Context, as_json: bool, **arguments: Any) -> None:
        code = emit(str(context.info_name), _outcomes(context, function, arguments), as_json)
        if code == INTERRUPTED:
            from embedding_pipelines.embedding.workers import is_busy

            if is_busy():  # the interpreter would wait for the request that is under way
                sys.stdout.flush()
                os._exit(code)
        raise typer.Exit(code)

    more = {"as_json": AsJson, "context": typer.Context}
    parameters = list(inspect.signature(function).parameters.values())
    for name, annotation in more.items():
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(name, kind, default=False, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**function.__annotations__, **more}  # typer reads both
    return command


def emit(command: str, outcomes: Outcomes, as_json: bool) -> int:
    """Show outcomes as they come, or print them all as one object; the exit code."""
    results: list[Mapping[str, Any]] = []
    errors: list[dict[str, str | None]] = []
    code = 0
    with contextlib.redirect_stdout(io.StringIO() if as_json else sys.stdout):
        for outcome in outcomes:
            if isinstance(outcome, Problem):
                errors.append({"error": outcome.error, "pipeline": outcome.pipeline})
                code = outcome.code
            else:
                results += outcome.results
            if not as_json:
                outcome.show()
    if as_json:
        value = {"command": command, "ok": not errors, "results": results, "errors": errors}
        # JSON that every reader takes: NaN, which is none, becomes null, and bytes of the command
        # line that are no UTF-8 are escaped.
        value = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        text = json.dumps(value, indent=2, ensure_ascii=False)
        print(text.encode("utf-8", "backslashreplace").decode())
    return code


def _outcomes(
    context: typer.Context, function: Callable[..., Outcomes], arguments: Mapping[str, Any]
) -> Outcomes:
    """What a command yields, and as the last problem what it raises."""
    try:
        if not home_folder().is_dir():
            where = "--home" if context.find_root().params.get("home") else HOME_VARIABLE
            raise ConfigError(f"{where}: there is no folder {str(home_folder())!r}.")
        yield from function(**arguments)
    except EmbeddingPipelinesError as error:
        yield Problem(str(error), arguments.get("name"))
    except OSError as error:
        if error.filename is None:
            raise
        yield Problem(f"{error.filename}: {error.strerror}.")
    except KeyboardInterrupt as interrupt:
        yield Problem(" ".join(["Stopped.", *interrupt.args]), code=INTERRUPTED)


def load_spec(text: str) -> "PipelineSpec":
    """The pipeline of a name or number; ConfigError if there is none or its file is broken."""
    from embedding_pipelines.spec.ids import find_name
    from embedding_pipelines.spec.load import find_pipeline

    return find_pipeline(find_name(home_folder(), text), home_folder())


def load_specs(names: list[str] | None) -> tuple[list["PipelineSpec"], list[Problem]]:
    """The pipelines of these names or numbers, or all there are; the others as problems.

    ConfigError if there are none at all.
    """
    from embedding_pipelines.spec.load import read_pipelines

    if not names:
        specs, broken = read_pipelines(home_folder())
        if not specs and not broken:
            raise ConfigError(no_pipelines())
        return list(specs.values()), [Problem(str(broken[path]), path.stem) for path in broken]
    specs, problems = {}, []
    for name in dict.fromkeys(names):
        try:
            spec = load_spec(name)
            specs[spec.name] = spec
        except ConfigError as error:
            problems.append(Problem(str(error), name))
    return list(specs.values()), problems


def find_released(text: str) -> str:
    """The pipeline of a name or number. What has a release needs no pipeline file any more.

    ConfigError if there is neither.
    """
    from embedding_pipelines.spec.ids import find_name

    name = find_name(home_folder(), text)
    if not open_warehouse().pipeline(name).releases.exists():
        load_spec(name)
    return name


def open_warehouse() -> "Warehouse":
    """The home folder's."""
    from embedding_pipelines.storage.warehouse import Warehouse

    return Warehouse(home_folder())


def open_run(spec: "PipelineSpec", progress: "Progress | None" = None) -> "Run":
    """A pipeline at work in the home folder's warehouse."""
    from embedding_pipelines.run import Run

    return Run(spec, open_warehouse(), progress)


def no_pipelines() -> str:
    folder = pipelines_folder(home_folder())
    return f"There are no pipelines in {folder}. `embedding-pipelines example` writes two."

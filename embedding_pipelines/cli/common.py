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
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from embedding_pipelines.cli.terminal import JOINERS, make_console, print_words
from embedding_pipelines.environment import HOME_VARIABLE
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, EmbeddingPipelinesError, describe_os_error
from embedding_pipelines.home import pipelines_folder

if TYPE_CHECKING:
    from embedding_pipelines.access import Principals
    from embedding_pipelines.progress import Progress
    from embedding_pipelines.run import Run
    from embedding_pipelines.spec.pipeline import PipelineSpec
    from embedding_pipelines.storage.warehouse import Warehouse

INTERRUPTED = 130  # exit code
PAUSED = 3  # exit code of a run that has stopped by itself, as it was told to

AsJson = Annotated[
    bool, typer.Option("--json", help="Print one object: command, ok, results, errors.")
]
HomeFolder = Annotated[
    Path | None,
    typer.Option(
        "--home",
        metavar="FOLDER",
        help=f"Where pipelines/ and data/ are (default: ${HOME_VARIABLE}, else here).",
    ),
]


def principals_of(names: list[str] | None, as_operator: bool) -> "Principals":
    """For whom a command reads. Raises BadParameter for both at once."""
    from embedding_pipelines.access import OPERATOR

    if names and as_operator:
        raise typer.BadParameter("say --as or --as-operator, not both.")
    return OPERATOR if as_operator else names


def set_home(folder: Path | None) -> None:
    """Let the rest of this command work in a folder; None: where it did."""
    if folder is not None:
        os.environ[HOME_VARIABLE] = str(folder.expanduser().resolve())


def complete_name(context: typer.Context, incomplete: str) -> list[str]:
    """The pipelines whose names begin so, for the shell."""
    from embedding_pipelines.spec.load import pipeline_files

    set_home(context.params.get("home") or context.find_root().params.get("home"))
    names = dict.fromkeys(path.stem for path in pipeline_files(home_folder()))
    return [name for name in names if name.startswith(incomplete)]


def _pipeline(help: str) -> Any:
    """An argument that names pipelines."""
    return typer.Argument(metavar="PIPELINE", help=help, autocompletion=complete_name)


Name = Annotated[str, _pipeline("The name of its file without ending, or its number.")]
OptionalName = Annotated[str | None, _pipeline("Its name or number.")]
Names = Annotated[list[str] | None, _pipeline("Pipelines by name or number (default: all).")]
PipelineId = Annotated[
    str | None,
    typer.Option(metavar="PIPELINE", help="Alias of PIPELINE.", autocompletion=complete_name),
]
ServerUrl = Annotated[
    str | None,
    typer.Option(
        "--server",
        metavar="URL",
        help="Do it on a server, with the key in $EMBEDDING_API_KEY, not in this folder.",
    ),
]
For = Annotated[
    list[str] | None,
    typer.Option(
        "--as",
        metavar="PRINCIPAL",
        help="For whom, where the pipeline has permissions: a user, and --as again for each group.",
    ),
]
AsOperator = Annotated[
    bool, typer.Option("--as-operator", help="See all documents, whatever the permissions say.")
]
Files = Annotated[list[str] | None, _pipeline("Pipelines by name, number or file (default: all).")]


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
        is_fault = self.code not in (INTERRUPTED, PAUSED)
        prefix, style = ("error: ", "red") if is_fault else ("", "")
        print_words(make_console(stderr=True), f"{prefix}{self.error}", style)


Outcomes = Iterator[Output | Problem]


def with_json(function: Callable[..., Outcomes]) -> Callable[..., None]:
    """The command for typer: `function` with the options `--json` and `--home`, and with exit
    codes."""

    @functools.wraps(function)
    def command(context: typer.Context, as_json: bool, home: Path | None, **arguments: Any) -> None:
        set_home(home)
        code = emit(str(context.info_name), _outcomes(context, function, arguments), as_json)
        if code == INTERRUPTED:
            from embedding_pipelines.embedding.workers import is_busy

            if is_busy():  # the interpreter would wait for the request that is under way
                sys.stdout.flush()
                os._exit(code)
        raise typer.Exit(code)

    more = {"as_json": AsJson, "home": HomeFolder, "context": typer.Context}
    parameters = list(inspect.signature(function).parameters.values())
    for name, annotation in more.items():
        kind, default = inspect.Parameter.KEYWORD_ONLY, None if name == "home" else False
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
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
        # JSON that every reader takes: NaN, which is none, becomes null; bytes of the command line
        # that are no UTF-8, and what a terminal would obey, are escaped.
        value = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        text = json.dumps(value, indent=2, ensure_ascii=False)
        print("\n".join(map(_safe_json, text.split("\n"))))
    return code


def _safe_json(line: str) -> str:
    """The same JSON, with escapes for what is neither printable nor joins letters."""
    if line.isprintable():
        return line
    return "".join(
        letter if letter.isprintable() or letter in JOINERS else json.dumps(letter)[1:-1]
        for letter in line
    )


def _outcomes(
    context: typer.Context, function: Callable[..., Outcomes], arguments: Mapping[str, Any]
) -> Outcomes:
    """What a command yields, and as the last problem what it raises."""
    try:
        if not home_folder().is_dir():
            option = context.params.get("home") or context.find_root().params.get("home")
            where = "--home" if option else HOME_VARIABLE
            raise ConfigError(f"{where}: there is no folder {str(home_folder())!r}.")
        yield from function(**arguments)
    except EmbeddingPipelinesError as error:
        yield Problem(str(error), arguments.get("name"))
    except OSError as error:
        yield Problem(describe_os_error(error), arguments.get("name"))
    except KeyboardInterrupt as interrupt:
        yield Problem(" ".join(["Stopped.", *interrupt.args]), code=INTERRUPTED)
    except typer.Abort:  # the answer to a question was no, Ctrl-D or Ctrl-C
        yield Problem("Stopped. Nothing was changed.", code=INTERRUPTED)


@contextlib.contextmanager
def options() -> Iterator[None]:
    """What is raised about options that are wrong whatever the pipeline is: then the command is wrong,
    exit code 2."""
    try:
        yield
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def load_spec(text: str) -> "PipelineSpec":
    """The pipeline of a name or number; ConfigError if there is none or its file is broken."""
    from embedding_pipelines.spec.ids import find_name
    from embedding_pipelines.spec.load import SUFFIXES, find_pipeline

    folder = pipelines_folder(home_folder())
    if text.lower().endswith(SUFFIXES):  # the path of its file
        for path in (Path(text), home_folder() / text, folder / text):
            if path.resolve().parent == folder.resolve() and path.is_file():
                text = path.stem
                break
    return find_pipeline(find_name(home_folder(), text), home_folder())


def one_of(name: str | None, pipeline_id: str | None) -> str:
    """The pipeline that is named as PIPELINE or by --pipeline-id. BadParameter for both or none."""
    if (name is None) == (pipeline_id is None):
        raise typer.BadParameter("name one pipeline, as PIPELINE or by --pipeline-id.")
    return name or pipeline_id or ""


def find_file_of(text: str) -> Path:
    """The pipeline file of a name, a number or a path, from here or from the home folder.

    ConfigError if there is none.
    """
    from embedding_pipelines.spec.ids import find_name
    from embedding_pipelines.spec.load import SUFFIXES, find_file

    if text.lower().endswith(SUFFIXES):
        for folder in (Path.cwd(), home_folder(), pipelines_folder(home_folder())):
            path = folder / os.path.expanduser(text)
            if path.exists() or path.is_symlink():
                return path
        raise ConfigError(f"There is no file {text!r}, from here or in {home_folder()}.")
    return find_file(find_name(home_folder(), text), home_folder())


def find_files(names: list[str] | None) -> tuple[list[Path], list[Problem]]:
    """The pipeline files of names, numbers or paths, or all there are; the others as problems.

    ConfigError if there are none at all.
    """
    from embedding_pipelines.spec.load import pipeline_files

    if not names:
        files = pipeline_files(home_folder())
        if not files:
            raise ConfigError(no_pipelines())
        return files, []
    paths: dict[Path, None] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            paths[find_file_of(name)] = None
        except ConfigError as error:
            problems.append(Problem(str(error), name))
    return list(paths), problems


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
    return (
        f"There are no pipelines in {folder}. `embedding-pipelines init FILE` writes one for a file "
        "of yours, `embedding-pipelines example` two with their data."
    )

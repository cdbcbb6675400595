"""What every command does around its own work: find pipelines, print results, say what is wrong."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.home import home as home_folder
from embedding_pipelines.home import pipelines_folder

if TYPE_CHECKING:
    from embedding_pipelines.pipeline import PipelineSpec


def specs_and_problems(names: list[str] | None) -> tuple[list["PipelineSpec"], list[str]]:
    """The named pipelines, or all there are, and what is wrong with the others; ConfigError if there is none."""
    from embedding_pipelines.pipeline_files import find_pipeline, read_pipelines

    if not names:
        specs, broken = read_pipelines(home_folder())
        if not specs and not broken:
            raise ConfigError(no_pipelines())
        return list(specs.values()), [str(error) for error in broken.values()]
    found, problems = [], []
    for name in dict.fromkeys(names):
        try:
            found.append(find_pipeline(name, home_folder()))
        except ConfigError as error:
            problems.append(str(error))
    return found, problems


def refuse_unknown(name: str) -> None:
    """ConfigError for a name that nobody knows. What was released once needs no pipeline file any more."""
    from embedding_pipelines.pipeline_files import find_pipeline
    from embedding_pipelines.warehouse import Warehouse

    if not Warehouse(home_folder()).pipeline(name).releases.exists():
        find_pipeline(name, home_folder())


def no_pipelines() -> str:
    return f"There are no pipelines in {pipelines_folder(home_folder())}. `embedding-pipelines example` makes two."


def emit(value: Any, as_json: bool, show: Callable[[], None]) -> None:
    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
    else:
        show()


def complain(problems: list[str]) -> None:
    from embedding_pipelines.terminal import make_console

    for problem in problems:
        make_console(stderr=True).print(f"error: {problem}", style="red", soft_wrap=True)


def fail(problem: str) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": problem}, ensure_ascii=False))
    else:
        complain([problem])
    sys.exit(1)

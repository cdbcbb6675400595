"""The command `init`: a pipeline file from source files."""

from typing import Annotated

import typer

from embedding_pipelines.cli.common import Outcomes, Output
from embedding_pipelines.cli.terminal import counted, say
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.home import pipelines_folder

app = typer.Typer()


@app.command()
def init(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Files, folders or globs of one format.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of the pipeline (default: the file's).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="As in a pipeline file (default: minilm; of images, CLIP)."
        ),
    ] = None,
) -> Outcomes:
    """Write a pipeline file for source files, to be corrected.

    Id, text, metadata and types are guessed from the first rows.
    """
    from embedding_pipelines.spec.guess import guess, name_of, write_guess

    home = home_folder()
    guessed = guess(home, files)
    path = pipelines_folder(home) / f"{name or name_of(files)}.yaml"
    write_guess(home, path, guessed, model)

    def show() -> None:
        say(
            f"{path}, from {counted(guessed.rows, guessed.unit)}:",
            "",
            *guessed.pipeline(model).splitlines(),
        )
        say("", f"Next: embedding-pipelines run {path.stem}")

    result = vars(guessed) | {"pipeline": path.stem, "file": str(path)}
    yield Output([result], show)

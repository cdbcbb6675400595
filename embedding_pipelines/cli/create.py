"""The command `create`: a pipeline of a configuration file, here or on a server."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import Outcomes, Output, ServerUrl, open_warehouse
from embedding_pipelines.cli.terminal import say
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError, ExistsError

app = typer.Typer()


@app.command()
def create(
    config: Annotated[
        Path, typer.Option(metavar="FILE", help="What a pipeline file says, in YAML or JSON.")
    ],
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="In place of the file's, as: bert.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the pipeline (default: the file's, with a number if that is taken).",
        ),
    ] = None,
    server: ServerUrl = None,
) -> Outcomes:
    """Create a pipeline from a configuration file.

    The pipeline file is written into pipelines/, and gets a number. Nothing is embedded before it
    runs. If there is one that says the same under this name, nothing happens.
    """
    from ruamel.yaml.error import YAMLError

    from embedding_pipelines.spec.edit import with_options
    from embedding_pipelines.spec.guess import name_of
    from embedding_pipelines.spec.load import read_text

    text, like = read_text(config), name_of([config.name])
    try:
        text = text if model is None else with_options(text, {("model",): model})
        values = _values(text)
        content = None if "name" in values else text  # a pipeline file has its name outside
        values |= {"name": name} if name else {}
        result = _on_server(server, values, like) if server else _here(content, values, like)
    except ExistsError:
        raise
    except (ConfigError, YAMLError) as error:
        raise ConfigError(f"Invalid config: {error}") from None
    where = f"on {server}" if server else result["file"]
    words = "is created" if result["is_new"] else "is there already"
    lines = [f"{result['pipeline']}: pipeline {result['id']} {words}, {where}", *result["doubts"]]
    lines.append(f"Next: embedding-pipelines run {result['pipeline']}")
    yield Output([result], partial(say, *lines))


def _values(text: str) -> dict[str, Any]:
    """What a file says, as plain values. Raises ConfigError."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(" ".join(str(error).split())) from None
    if not isinstance(values, dict):
        raise ConfigError("it holds no options. Write `model: …` and `data_path: …`.")
    return values


def _here(text: str | None, values: Mapping[str, Any], like: str) -> dict[str, Any]:
    from embedding_pipelines.spec.create import create_from
    from embedding_pipelines.spec.ids import pipeline_ids
    from embedding_pipelines.spec.pipeline import PipelineSpec
    from embedding_pipelines.validate import check_new

    doubts = list[str]()

    def check(spec: PipelineSpec) -> None:
        doubts.extend(check_new(spec, open_warehouse()))

    created = create_from(home_folder(), values, check, like, text)
    name = created.spec.name
    return {
        "id": pipeline_ids(home_folder()).get(name),
        "pipeline": name,
        "file": str(created.path),
        "is_new": created.is_new,
        "doubts": doubts,
    }


def _on_server(server: str, values: Mapping[str, Any], like: str) -> dict[str, Any]:
    from embedding_pipelines.serving.wire import Conflict

    config = json.loads(json.dumps({"name": like, **values}, default=str))
    try:
        created = remote.create(server, config)
    except Conflict:
        if "name" in values:
            raise
        del config["name"]  # the server finds one that is free
        created = remote.create(server, config)
    return {
        "id": created.id,
        "pipeline": created.pipeline,
        "file": None,
        "is_new": created.is_new,
        "doubts": created.doubts,
    }

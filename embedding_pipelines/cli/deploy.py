"""The commands `deploy` and `undeploy`."""

import os
from functools import partial
from typing import Annotated

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import (
    OptionalName,
    Outcomes,
    Output,
    PipelineId,
    ServerUrl,
    find_released,
    one_of,
    open_warehouse,
)
from embedding_pipelines.cli.terminal import TerminalProgress, make_console, say

ENDPOINT = "A server's address, a SageMaker endpoint, or a folder for Kubernetes."

app = typer.Typer()


@app.command()
def deploy(
    endpoint: Annotated[str, typer.Option(metavar="ENDPOINT", help=ENDPOINT)],
    name: OptionalName = None,
    pipeline_id: PipelineId = None,
    server: ServerUrl = None,
) -> Outcomes:
    """Give the live release to an endpoint, sealed in a bundle.

    What serves there goes on until the new one is verified, and stays if it is not. A server that
    needs a key is sent $EMBEDDING_API_KEY.
    """
    from embedding_pipelines.serving.targets.deploy import deploy as give
    from embedding_pipelines.serving.wire import KEY_VARIABLE

    name = one_of(name, pipeline_id)
    if server:
        yield from remote.deploy(server, name, endpoint)
        return
    name, key = find_released(name), os.environ.get(KEY_VARIABLE, "")
    with TerminalProgress(make_console(), name) as progress:
        deployment = give(open_warehouse(), name, endpoint, key=key, progress=progress)
    lines = (
        f"{name}: release {deployment.release} is deployed to {endpoint}",
        f"To remove it: embedding-pipelines undeploy {name} --endpoint {endpoint}",
    )
    yield Output([deployment.model_dump(mode="json")], partial(say, *lines))


@app.command()
def undeploy(
    name: OptionalName = None,
    pipeline_id: PipelineId = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="ENDPOINT", help="Where (default: the only one).")
    ] = None,
    server: ServerUrl = None,
) -> Outcomes:
    """Remove all that `deploy` made, and say what."""
    from embedding_pipelines.serving.targets.deploy import undeploy as remove
    from embedding_pipelines.serving.wire import KEY_VARIABLE

    name = one_of(name, pipeline_id)
    if server:
        yield from remote.undeploy(server, name, endpoint)
        return
    name, key = find_released(name), os.environ.get(KEY_VARIABLE, "")
    removed = remove(open_warehouse(), name, endpoint, key=key)
    lines = [f"{name}: undeployed", *(f"removed {what}" for what in removed)]
    yield Output([{"pipeline": name, "removed": removed}], partial(say, *lines))

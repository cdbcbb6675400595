"""The command `metrics`, which monitors read."""

import sys
from dataclasses import asdict

import typer

from embedding_pipelines.cli import remote
from embedding_pipelines.cli.common import Outcomes, Output, ServerUrl
from embedding_pipelines.environment import home as home_folder

app = typer.Typer()


@app.command()
def metrics(server: ServerUrl = None) -> Outcomes:
    """Print what a monitor watches of all pipelines, for Prometheus.

    Write it to a file of node_exporter's textfile folder, or serve it. A server's figures have those
    of its requests, too.
    """
    if server:
        yield from remote.metrics(server)
        return
    from embedding_pipelines.prometheus import exposition, samples

    numbers = samples(home_folder())
    yield Output(
        list(map(asdict, numbers)), lambda: print(exposition(numbers), end="", file=sys.stdout)
    )

"""The command `serve`: the HTTP API of a home folder."""

import ipaddress
import os
from typing import Annotated

import typer

from embedding_pipelines.cli.common import Outcomes, Output
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
) -> Outcomes:
    """Serve the pipelines: embeddings, search, management.

    Who sends requests needs the key that $EMBEDDING_API_KEY held when the server started. Without
    one it listens on loopback only. /docs describes the API.
    """
    need("fastapi", "serving")
    need("uvicorn", "serving")
    from embedding_pipelines.serving.auth import KEY_VARIABLE, Keys
    from embedding_pipelines.serving.process import Process
    from embedding_pipelines.serving.server import Server

    keys = Keys(os.environ.get(KEY_VARIABLE))
    if keys.is_open and not _is_loopback(host):
        raise ConfigError(
            f"--host {host}: without a key the server listens on loopback only. Set "
            f"${KEY_VARIABLE}, or use 127.0.0.1."
        )
    anybody = f" Without ${KEY_VARIABLE} it needs no key, and listens on loopback only."

    def say_ready(address: str) -> None:
        print(f"Ready on {address} (docs: {address}/docs).{anybody if keys.is_open else ''}")

    Process(Server(home_folder(), keys), host, port, say_ready).run()
    yield Output([{"stopped": True}])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

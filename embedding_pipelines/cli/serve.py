"""The command `serve`: the HTTP API of a home folder."""

import contextlib
import io
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from embedding_pipelines.cli.common import Outcomes, Output
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.extras import need
from embedding_pipelines.objects import is_uri

if TYPE_CHECKING:
    from embedding_pipelines.serving.server import Server

SAGEMAKER_BUNDLE = "/opt/ml/model/bundle.tar"  # where SageMaker puts what it is given

app = typer.Typer()


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    bundle: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Serve what `bundle` wrote, in place of a home folder: a file, a folder or "
            "s3://bucket/key. It does not start if a checksum or a golden vector is wrong.",
        ),
    ] = None,
    reranker: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="A cross-encoder for /rerank: a folder, or a model of the Hugging Face hub.",
        ),
    ] = "",
    variable: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="An environment variable that pipelines which are sent to the server may name. "
            "Give it again for more. A provider's own key needs none.",
        ),
    ] = None,
    custom_code: Annotated[
        bool,
        typer.Option(
            "--custom-code",
            help="Pipelines that are sent to the server may have models that run code: custom "
            "classes below the home folder, and pickles.",
        ),
    ] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URI",
            help="A prefix of a bucket, s3://bucket/folder/, that pipelines which are sent to the "
            "server may deliver to. Give it again for more. Folders below the home need none.",
        ),
    ] = None,
    sagemaker: Annotated[
        bool,
        typer.Option(
            "--sagemaker",
            envvar="EMBEDDING_PIPELINES_SAGEMAKER",
            help="As SageMaker's container: /ping and /invocations alone, without a key, on all "
            f"addresses, of the bundle {SAGEMAKER_BUNDLE}.",
        ),
    ] = False,
) -> Outcomes:
    """Serve the pipelines: embeddings, search, management.

    Who sends requests needs the key that $EMBEDDING_API_KEY held when the server started, or one
    of `embedding-pipelines keys`. Without any it listens on loopback only. /docs describes the API.
    """
    need("fastapi", "serving")
    need("uvicorn", "serving")
    if reranker:
        need("sentence_transformers", "local")
    from embedding_pipelines.serving.auth import Keys, is_loopback
    from embedding_pipelines.serving.bundle import opened
    from embedding_pipelines.serving.permissions import Permissions
    from embedding_pipelines.serving.process import Process
    from embedding_pipelines.serving.server import Server
    from embedding_pipelines.serving.wire import KEY_VARIABLE

    _refuse_folders(output or ())
    keys = Keys(os.environ.get(KEY_VARIABLE), None if bundle else home_folder())
    if sagemaker:  # which has seen to it that whoever asks may
        keys, host, bundle = Keys(trusts_network=True), "0.0.0.0", bundle or SAGEMAKER_BUNDLE
    elif keys.is_open and not is_loopback(host):
        raise ConfigError(
            f"--host {host}: without a key the server listens on loopback only. Set "
            f"${KEY_VARIABLE}, or use 127.0.0.1."
        )
    _require_free(host, port)
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(opened(bundle)) if bundle else home_folder()
        allowed = Permissions(frozenset(variable or ()), custom_code, frozenset(output or ()))
        server = Server(home, keys, reranker, allowed)
        say_ready = partial(_say_ready, server)
        Process(server, host, port, say_ready, is_container=sagemaker).run()
    yield Output([{"stopped": True}])


def _refuse_folders(places: Sequence[str]) -> None:
    for place in places:
        if not is_uri(place):
            raise typer.BadParameter(
                f"`--output` is {place!r}, which is no bucket. Write a prefix as s3://bucket/folder/; folders "
                "below the home need none."
            )


def _say_ready(server: "Server", address: str) -> None:
    from embedding_pipelines.serving.wire import KEY_VARIABLE

    # With --json stdout is for the object in the end.
    messages = sys.stderr if isinstance(sys.stdout, io.StringIO) else sys.stdout
    anybody = f" Without ${KEY_VARIABLE} it needs no key, and listens on loopback only."
    words = f"Ready on {address} (docs: {address}/docs).{anybody if server.keys.is_open else ''}"
    print(words, file=messages, flush=True)
    for name, problem in server.faults.items():
        print(f"Not ready: {name}: {problem}", file=messages, flush=True)


def _require_free(host: str, port: int) -> None:
    """Raises ConfigError for an address that nobody can listen on now; uvicorn would end the process."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
            listening.listen()
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port}: nothing can listen there: {error.strerror}. "
                "End what listens there now, or name another address; --port 0 takes any port that is "
                "free."
            ) from error

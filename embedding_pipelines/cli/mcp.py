"""The command `mcp`: pipelines as tools of an assistant."""

import typer

from embedding_pipelines.cli.common import AsOperator, For, Outcomes, principals_of
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.extras import need

app = typer.Typer()


@app.command()
def mcp(principals: For = None, as_operator: AsOperator = False) -> Outcomes:
    """Give an assistant tools: search, list, status, run.

    It speaks the Model Context Protocol on standard input and output, so an assistant starts it:
    its settings name this command. The tools work on the pipelines of this folder; those with
    permissions are read for the principals of --as.
    """
    need("mcp", "assistants")
    from embedding_pipelines.serving.assistants import assistants_server
    from embedding_pipelines.serving.auth import Keys
    from embedding_pipelines.serving.server import Server

    reader = principals_of(principals, as_operator)
    assistants_server(Server(home_folder(), Keys()), reader).run("stdio")
    yield from ()

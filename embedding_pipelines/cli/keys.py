"""The command `keys`: who may use the server."""

from functools import partial
from typing import Annotated, Any, Literal

import typer

from embedding_pipelines.cli.common import Outcomes, Output
from embedding_pipelines.cli.terminal import make_console, print_table, print_words, say
from embedding_pipelines.environment import home as home_folder
from embedding_pipelines.extras import need

LAST_IS_GONE = (
    "\nNo key is left. A server that runs goes on asking for one; started anew, it needs none."
)

app = typer.Typer()


@app.command()
def keys(
    add: Annotated[
        str | None, typer.Option(metavar="NAME", help="Make a key, and show it this once.")
    ] = None,
    scope: Annotated[
        Literal["read", "write", "admin"],
        typer.Option(
            help="read: embed and search. write: also documents, runs, rollbacks and optimize. admin: all.",
        ),
    ] = "read",
    per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="The requests that it may send.")
    ] = None,
    principals: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="PRINCIPAL",
            help="Bind it to a user, and --as again for each of their groups: of pipelines with "
            "permissions it reads what these may see.",
        ),
    ] = None,
    acts_for_others: Annotated[
        bool,
        typer.Option(
            "--acts-for-others",
            help="Let it say for whom it reads, by the header X-Principals. For applications that "
            "know their users.",
        ),
    ] = False,
    remove: Annotated[
        str | None, typer.Option(metavar="NAME", help="Let a key count no more, at once.")
    ] = None,
) -> Outcomes:
    """List, make and remove the keys of this folder's server.

    They are kept as hashes. $EMBEDDING_API_KEY of the server is one more key, for everything.
    """
    need("fastapi", "serving")
    from embedding_pipelines.serving.auth import add_key, read_keys, remove_key

    if add and remove:
        raise typer.BadParameter("say --add or --remove, not both.")
    if add:
        bound = principals or []
        token = add_key(home_folder(), add, scope, per_minute, bound, acts_for_others)
        whom = {"principals": bound, "acts_for_others": acts_for_others}
        result = {"name": add, "scope": scope, "key": token, **whom}
        yield Output([result], partial(say, f"{add}, {scope}:", token, "It is not shown again."))
        return
    if remove:
        remove_key(home_folder(), remove)
        words = f"{remove}: removed{'' if read_keys(home_folder()) else LAST_IS_GONE}"
        yield Output([{"removed": remove}], partial(print_words, make_console(), words))
        return
    rows = [key.model_dump(mode="json", exclude={"sha256"}) for key in read_keys(home_folder())]
    nothing = "There are no keys. `embedding-pipelines keys --add NAME --scope read` makes one."
    table = partial(print_table, make_console(), [_shown(row) for row in rows])
    yield Output(rows, table if rows else partial(say, nothing))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A line of the list, for people."""
    reads_for = "whom it says" if row["acts_for_others"] else ", ".join(row["principals"])
    return {
        "name": row["name"],
        "scope": row["scope"],
        "per minute": row["per_minute"],
        "reads for": reads_for or None,
        "made at": row["created_at"][:16].replace("T", " "),
    }

"""The short names of models that a pipeline file may use."""

from typing import Any, NamedTuple

from embedding_pipelines.errors import did_you_mean
from embedding_pipelines.providers.common.prices import ROWS


class Alias(NamedTuple):
    """The target of an alias: provider, model, and the commit of a model from the hub.

    The commit keeps the weights of an alias the same. Each is one that MTEB's figures or the cards
    of derived models name; none was checked at the hub itself.
    """

    provider: str
    model: str = ""
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As a pipeline file would write them."""
        options = {"kind": self.provider, "model": self.model, "revision": self.revision}
        return {name: value for name, value in options.items() if value}

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


ALIASES: dict[str, Alias] = {
    **{
        row["alias"]: Alias(row["provider"], row["model"], row.get("revision"))
        for row in ROWS
        if "alias" in row
    },
    "word2vec": Alias("word2vec"),  # from a file or trained on the pipeline's own texts
    "hashing": Alias("hashing"),
}


def parse_model(text: str) -> dict[str, Any]:
    """The options that an alias or `provider:model` stands for. Raises ValueError for neither."""
    if text in ALIASES:
        return ALIASES[text].options
    kind, colon, model = text.partition(":")
    if not colon:
        whole = next((f"{row['provider']}:{text}" for row in ROWS if row["model"] == text), None)
        if whole is not None:
            raise ValueError(f"{text!r} needs its provider: write {whole!r}")
        raise ValueError(
            f"{text!r} is no known alias.{did_you_mean(text, ALIASES)} Write "
            f"'hf:<organisation>/<model>' or one of {', '.join(ALIASES)}"
        )
    return {"kind": kind, "model": model} if model else {"kind": kind}

"""What a pipeline file may say under `permissions:`: a table of document ids and principals.

It is a source as any other, in a file, a bucket or a database, but that `principals` names its column
in place of `text` and `metadata`. `access.py` reads it.
"""

from typing import Any

from embedding_pipelines.sources.base import Source

KINDS = ("csv", "json", "jsonl", "parquet", "sql")
OF_DOCUMENTS = ("text", "metadata", "duplicates", "max_rejected", "nanoseconds")
PRINCIPALS = "principals"


def as_source(value: Any) -> Any:
    """The options of a source whose text are the principals. Raises ValueError for what is no
    table of ids and principals."""
    if not isinstance(value, dict):
        return value
    for name in OF_DOCUMENTS:
        if name in value:
            raise ValueError(
                f"{name}: is an option of documents; permissions have `id` and `principals`"
            )
    if "kind" in value and value["kind"] not in KINDS:
        raise ValueError(f"kind: {value['kind']!r} is none of {', '.join(KINDS)}")
    if not isinstance(value.get("id"), str):
        raise ValueError("needs `id`: the column of the documents' ids, as a search shows them")
    column = value.get(PRINCIPALS, PRINCIPALS)
    if not isinstance(column, str) or not column:
        raise ValueError(f"{PRINCIPALS}: must name the column of who may see the document")
    return {key: part for key, part in value.items() if key != PRINCIPALS} | {"text": column}


def as_written(permissions: Source) -> dict[str, Any]:
    """The options as a pipeline file has them."""
    options = permissions.model_dump(mode="json", exclude=set(OF_DOCUMENTS))
    return options | {PRINCIPALS: permissions.text[0]}

"""The numbers of pipelines: given once, in the order in which they were first seen, for commands
and scripts.

They stand in the warehouse's `ids.json`. A name keeps its number when its file is deleted and comes
back, and no number is ever given to another one.
"""

import re
from pathlib import Path

from filelock import FileLock

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.spec.load import pipeline_files
from embedding_pipelines.spec.pipeline import NAME

NUMBER = re.compile(r"[0-9]+")  # which no name is: names begin with a letter


def pipeline_ids(home: Path) -> dict[str, int]:
    """The number of each pipeline that ever had a file; what has none yet is given the next ones,
    by name.

    Raises StoreError if `ids.json` is damaged.
    """
    path = warehouse_folder(home) / "ids.json"
    ids = _read(path)
    if _without(ids, home):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(".ids.lock")):
            ids = _read(path)  # another process may just have given them
            for name in _without(ids, home):
                ids[name] = max(ids.values(), default=0) + 1
            write_json(path, {"ids": ids})
    return ids


def find_name(home: Path, text: str) -> str:
    """The pipeline that a user means by a number, or `text` itself, which is then its name.

    Raises ConfigError for a number that no pipeline has, StoreError as `pipeline_ids`.
    """
    if not NUMBER.fullmatch(text):
        return text
    names = {number: name for name, number in pipeline_ids(home).items()}
    if int(text) not in names:
        known = (
            ", ".join(f"{number} is {name!r}" for number, name in names.items())
            or "there are no pipelines yet"
        )
        raise ConfigError(f"No pipeline has the number {text}: {known}.")
    return names[int(text)]


def _without(ids: dict[str, int], home: Path) -> list[str]:
    """The pipelines that have no number yet, by name; a file whose name cannot be a pipeline's gets
    none."""
    names = dict.fromkeys(path.stem for path in pipeline_files(home))
    return [name for name in names if name not in ids and NAME.fullmatch(name)]


def _read(path: Path) -> dict[str, int]:
    remedy = (
        f"Put back a copy of it, or delete it: pipelines are then numbered anew, by name ({path})."
    )
    try:
        found = read_json(path)
    except StoreError as error:
        raise StoreError(
            f"The numbers of the pipelines cannot be read: {error.__cause__}. {remedy}"
        ) from error
    if found is None:
        return {}
    ids = found.get("ids") if isinstance(found, dict) else None
    if not isinstance(ids, dict) or not all(
        type(number) is int and number > 0 for number in ids.values()
    ):
        raise StoreError(f"The numbers of the pipelines are not whole numbers by name. {remedy}")
    if len(set(ids.values())) < len(ids):
        raise StoreError(f"Two pipelines have the same number. {remedy}")
    return ids

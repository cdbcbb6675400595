"""Numbers the pipelines of a home, once and for ever, for commands and scripts.

The warehouse's `ids.json` holds them. A name keeps its number when its file is deleted and comes
back, and no other name ever gets that number.
"""

import contextlib
import re
from pathlib import Path

from filelock import FileLock

from embedding_pipelines.errors import ConfigError, StoreError
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.home import warehouse_folder
from embedding_pipelines.spec.load import pipeline_files
from embedding_pipelines.spec.pipeline import NAME

LOCK_SECONDS = 10.0  # for other processes, each of which takes milliseconds
NUMBER = re.compile(r"[0-9]{1,18}")  # which no name is: names begin with a letter


def pipeline_ids(home: Path) -> dict[str, int]:
    """The number of each pipeline that ever had a file; new ones get the next numbers, by name.

    Where nothing can be written (a home that is read only, a full disk), new ones have none: a
    number that is not kept would be another one's tomorrow.

    Raises StoreError if `ids.json` is damaged.
    """
    path = warehouse_folder(home) / "ids.json"
    ids = _read(path)
    if _names_without(ids, home):
        with contextlib.suppress(OSError):
            ids = _number(path, home)
    return ids


def _number(path: Path, home: Path) -> dict[str, int]:
    """All numbers, once new pipelines have theirs. Raises OSError if they cannot be kept."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(".ids.lock"), timeout=LOCK_SECONDS):
        ids = _read(path)  # another process may just have numbered them
        for name in _names_without(ids, home):
            ids[name] = max(ids.values(), default=0) + 1
        write_json(path, {"ids": ids})
    return ids


def find_name(home: Path, text: str) -> str:
    """The name of the pipeline with this number, or `text` itself if it is no number.

    Raises ConfigError for a number that no pipeline has, StoreError as `pipeline_ids` does.
    """
    if not NUMBER.fullmatch(text):
        return text
    names = {number: name for name, number in pipeline_ids(home).items()}
    if int(text) not in names:
        pairs = ", ".join(f"{number} is {name!r}" for number, name in names.items())
        raise ConfigError(
            f"No pipeline has the number {text}: {pairs or 'there are no pipelines yet'}."
        )
    return names[int(text)]


def _names_without(ids: dict[str, int], home: Path) -> list[str]:
    """The pipelines without a number, by name; files whose names cannot name one are left out."""
    names = dict.fromkeys(path.stem for path in pipeline_files(home))
    return [name for name in names if name not in ids and NAME.fullmatch(name)]


def _read(path: Path) -> dict[str, int]:
    remedy = f"Put back a copy of it, or delete it to number the pipelines again, by name ({path})."
    try:
        content = read_json(path)
    except StoreError as error:
        raise StoreError(
            f"The numbers of the pipelines cannot be read: {error.__cause__}. {remedy}"
        ) from error
    if content is None:
        return {}
    ids = content.get("ids")
    if not isinstance(ids, dict) or not all(type(n) is int and n > 0 for n in ids.values()):
        raise StoreError(f"The numbers of the pipelines are not whole numbers by name. {remedy}")
    if len(set(ids.values())) < len(ids):
        raise StoreError(f"Two pipelines have the same number. {remedy}")
    return ids

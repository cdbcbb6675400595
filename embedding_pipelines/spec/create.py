"""Writes a new pipeline file from a configuration, for those who do not write it by hand."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from embedding_pipelines.errors import ConfigError, ExistsError
from embedding_pipelines.files import create_only
from embedding_pipelines.home import pipelines_folder
from embedding_pipelines.spec.guess import name_of
from embedding_pipelines.spec.load import MAX_BYTES, parse_pipeline, pipeline_files, read_pipeline
from embedding_pipelines.spec.pipeline import NAME, PipelineSpec
from embedding_pipelines.variables import VARIABLE

MAX_SAME = 1000  # pipelines of one name, numbered
LEAVES = re.compile(
    r"(?:file:/*|sqlite(?:\+\w+)?://[^/]*/)?"
    r"(?:[/~\\].+|\$\{.+|[A-Za-z]:[/\\].*|(?:.*[/\\])?\.\.(?:[/\\].*)?)",
    re.IGNORECASE | re.DOTALL,
)
NOT_PATHS = ("name", "description", "owners")


@dataclass(frozen=True)
class Created:
    """A pipeline of a home: `is_new` is False if a file said the same before."""

    spec: PipelineSpec
    path: Path
    is_new: bool


Check = Callable[[PipelineSpec], None]


def create_pipeline(home: Path, text: str, name: str, check: Check) -> Created:
    """Write a new pipeline file of this text (YAML or JSON), unless `check` raises ConfigError for
    what it says.

    A file that says the same already is left as it is, so that the same call may be repeated.
    Raises ConfigError, with a line for each mistake, for what is no pipeline, and ExistsError if
    another one has the name.
    """
    if len(text.encode()) > MAX_BYTES:
        raise ConfigError(f"{name}: has more than {MAX_BYTES // 1024} KiB, which is no pipeline.")
    spec = parse_pipeline(text, name, f"{name}.yaml")
    path = pipelines_folder(home) / f"{name}.yaml"
    others = [file for file in pipeline_files(home) if file.stem == name]
    if not others:
        check(spec)
        if create_only(path, text):  # of two who create it at once, one does
            return Created(spec, path, True)
    path = next(iter(others), path)
    try:
        before = read_pipeline(path)
    except ConfigError:
        before = None
    if before is None or before.model_dump() != spec.model_dump():
        raise ExistsError(
            f"There is another pipeline {name!r}, in {path}. Choose another name, or edit or delete "
            "that file."
        )
    return Created(before, path, False)


def create_from(
    home: Path, config: Mapping[str, Any], check: Check, like: str = "", text: str | None = None
) -> Created:
    """The same of a configuration, under its `name`; without one under a name `like` this, or made
    of its `data_path`, `source.path` or model, with a number if that is taken.

    `text`: what the file is to hold, which says what `config` says; None: written from `config`.
    """
    values = dict(config)
    name = values.pop("name", "")
    if not isinstance(name, str):
        raise ConfigError(f"name: {name!r} is no text. Write a name such as 'products'.")
    text = as_yaml(values) if text is None else text
    if name:
        return create_pipeline(home, text, name, check)
    base = like or _name_for(values)
    for number in range(1, MAX_SAME):
        with contextlib.suppress(ExistsError):
            numbered = base if number == 1 else f"{base[:57]}_{number}"
            return create_pipeline(home, text, numbered, check)
    raise ConfigError(f"There are {MAX_SAME} pipelines called {base!r}. Choose another name.")


def as_yaml(config: Mapping[str, Any]) -> str:
    """A configuration of plain values as a pipeline file. Raises ConfigError for other values."""
    try:
        return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise ConfigError(f"{' '.join(str(error).split())}. Write plain values.") from None


def _name_for(values: Mapping[str, Any]) -> str:
    """Of its files, else of its model."""
    source = values.get("source")
    path = values.get("data_path") or (source.get("path") if isinstance(source, Mapping) else "")
    path = path[0] if isinstance(path, list) and path else path
    model = values.get("model")
    model = model.get("model") or model.get("provider") if isinstance(model, Mapping) else model
    for text in (path, model):
        if isinstance(text, str) and text.strip("/ "):
            name = name_of([text.rstrip("/").rpartition(":")[2] or text])
            if NAME.fullmatch(name):
                return name
    return "pipeline"


def paths_that_leave(config: Mapping[str, Any]) -> Iterator[str]:
    """The places and values in a configuration that name files outside the home folder, or may: a
    configuration that comes over the network names none.

    Words for people (`description`) are not looked at.
    """
    for place, text in _texts(config, ""):
        is_named = place.endswith("url") or ".options." in place  # by whoever runs the server
        if place.split(".")[0] in NOT_PATHS or (is_named and VARIABLE.fullmatch(text)):
            continue
        if len(text) > 1 and LEAVES.fullmatch(text):
            yield f"{place}: {json.dumps(text)[:200]}"


def _texts(value: Any, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _texts(part, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _texts(part, f"{place}.{number}")

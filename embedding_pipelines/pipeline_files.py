"""Reads pipeline files: YAML or JSON, every error at once, each with its line and what to do.

One loader for Dagster, command line, API and tests.
"""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.home import pipelines_folder
from embedding_pipelines.pipeline import PipelineSpec

SUFFIXES = (".yaml", ".yml", ".json")
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def pipeline_files(home: Path) -> list[Path]:
    """The pipeline files of a home folder, by name."""
    folder = pipelines_folder(home)
    found = (path for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else ()
    return sorted(found)


def find_pipeline(name: str, home: Path) -> PipelineSpec:
    """The pipeline called `name`; ConfigError that names the nearest ones if there is none."""
    files = {path.stem: path for path in pipeline_files(home)}
    if name in files:
        return read_pipeline(files[name])
    near = difflib.get_close_matches(name, files, n=1)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    known = f"There are: {', '.join(sorted(files))}." if files else "`embedding-pipelines example` makes two."
    raise ConfigError(f"There is no pipeline {name!r} in {pipelines_folder(home)}.{guess} {known}")


def read_pipelines(home: Path) -> tuple[dict[str, PipelineSpec], dict[Path, ConfigError]]:
    """All pipelines by name, and the files that are broken with their errors."""
    specs: dict[str, PipelineSpec] = {}
    broken: dict[Path, ConfigError] = {}
    for path in pipeline_files(home):
        try:
            if path.stem in specs:
                raise ConfigError(f"{path}: another file is called {path.stem!r} too. Rename one of them.")
            specs[path.stem] = read_pipeline(path)
        except ConfigError as error:
            broken[path] = error
    return specs, broken


def read_pipeline(path: Path) -> PipelineSpec:
    """One pipeline file; its name is the file's. Raises ConfigError with a line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 at byte {error.start}. Save it as UTF-8.") from error
    return parse_pipeline(text, path.stem, path.name)


def parse_pipeline(text: str, name: str, where: str) -> PipelineSpec:
    """A pipeline from YAML or JSON text (JSON is YAML); `where` stands in front of each error."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{where}:{line}: is not YAML: {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML: {error}.") from error
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{where}:1: holds no pipeline. It needs at least `source:` and `model:`.")
    problems = [f"{where}:{line}: {what}" for line, what in _duplicate_keys(root)]
    values = _expand(yaml.SafeLoader("").construct_document(root), where, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        return PipelineSpec.model_validate({"name": name, **values})
    except ValidationError as error:
        raise ConfigError("\n".join(_sentence(where, root, detail) for detail in error.errors())) from error


def _duplicate_keys(node: yaml.Node) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                yield line, f"{key.value!r} stands twice, first in line {seen[key.value]}. Keep one."
            seen[key.value] = line
            yield from _duplicate_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _duplicate_keys(value)


def _expand(value: Any, where: str, problems: list[str]) -> Any:
    """Replace `${NAME}` in every string by the environment's value."""
    if isinstance(value, dict):
        return {key: _expand(part, where, problems) for key, part in value.items()}
    if isinstance(value, list):
        return [_expand(part, where, problems) for part in value]
    if not isinstance(value, str):
        return value
    for name in VARIABLE.findall(value):
        if name not in os.environ:
            problems.append(f"{where}: the environment variable {name!r} is not set.")
    return VARIABLE.sub(lambda match: os.environ.get(match[1], ""), value)


def _sentence(where: str, root: yaml.Node, detail: ErrorDetails) -> str:
    """One pydantic error as `file:line: option: what is wrong`."""
    node, path = root, []
    line = root.start_mark.line + 1
    for part in detail["loc"]:
        found = _child(node, part)
        if found is None:
            # The tag of a union ("jsonl") is in the location but not in the file; a missing key neither.
            if part == detail["loc"][-1] and detail["type"] == "missing":
                path.append(str(part))
            continue
        line, node = found
        path.append(str(part))
    option = ".".join(path)
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = f"is no option here{_near(option, node, detail)}"
    elif detail["type"] == "missing":
        message = "is missing"
    elif detail["type"] in ("union_tag_not_found", "union_tag_invalid"):
        expected = detail.get("ctx", {}).get("expected_tags")
        message = f"needs a 'kind', one of {expected}" if expected else "needs a 'kind'"
    return f"{where}:{line}: {f'{option}: ' if option else ''}{message.rstrip('.')}."


def _near(option: str, node: yaml.Node, detail: ErrorDetails) -> str:
    """What the user may have meant by an unknown option."""
    known = _options(detail["loc"][:-1])
    near = difflib.get_close_matches(option.rsplit(".", 1)[-1], known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""


def _options(path: tuple[int | str, ...]) -> list[str]:
    """The options there are at a place of the file, e.g. those of `("source", "csv")`."""
    from embedding_pipelines.plugins import choices

    if not path:
        return [name for name in PipelineSpec.model_fields if name != "name"]
    stage = {"source": "sources", "model": "providers", "compression": "compression", "store": "stores"}
    base = PipelineSpec.model_fields
    if path[0] in stage:
        from embedding_pipelines.compression.base import Compressor
        from embedding_pipelines.providers.base import Provider
        from embedding_pipelines.sources.base import Source
        from embedding_pipelines.stores.base import Store

        bases = {"source": Source, "model": Provider, "compression": Compressor, "store": Store}
        found = choices(stage[str(path[0])], bases[str(path[0])])
        kinds = [found[part] for part in path if isinstance(part, str) and part in found]
        return list(kinds[0].model_fields) if kinds else []
    annotation = base[str(path[0])].annotation if path[0] in base else None
    for part in path[1:]:
        fields = getattr(annotation, "model_fields", {})
        annotation = fields[part].annotation if part in fields else None
    return list(getattr(annotation, "model_fields", {}))


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    """The line and node of a key or an index below `node`."""
    if isinstance(node, yaml.MappingNode):
        wanted = "provider" if part == "kind" else part
        for key, value in node.value:
            if key.value in (part, wanted):
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None

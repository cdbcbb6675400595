"""Reads pipeline files: YAML or JSON, every error at once, each with its line and what to do.

One loader for Dagster, command line, API and tests.
"""

import difflib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from embedding_pipelines.errors import ConfigError, did_you_mean
from embedding_pipelines.home import pipelines_folder
from embedding_pipelines.spec.pipeline import PipelineSpec

Problem = tuple[int, str]  # line, what is wrong there

SUFFIXES = (".yaml", ".yml", ".json")
TEXT_TAG = "tag:yaml.org,2002:str"
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def pipeline_files(home: Path) -> list[Path]:
    """The pipeline files of a home folder, by name."""
    folder = pipelines_folder(home)
    found = (
        (path for path in folder.glob("*") if path.suffix in SUFFIXES) if folder.is_dir() else ()
    )
    return sorted(found)


def find_pipeline(name: str, home: Path) -> PipelineSpec:
    """The pipeline called `name`; ConfigError that names the nearest ones if there is none."""
    files = {path.stem: path for path in pipeline_files(home)}
    if name in files:
        return read_pipeline(files[name])
    known = (
        f"There are: {', '.join(sorted(files))}."
        if files
        else "`embedding-pipelines example` makes two."
    )
    raise ConfigError(
        f"There is no pipeline {name!r} in {pipelines_folder(home)}.{did_you_mean(name, files)} {known}"
    )


def read_pipelines(home: Path) -> tuple[dict[str, PipelineSpec], dict[Path, ConfigError]]:
    """All pipelines by name, and the files that are broken with their errors."""
    specs: dict[str, PipelineSpec] = {}
    broken: dict[Path, ConfigError] = {}
    for path in pipeline_files(home):
        try:
            if path.stem in specs:
                raise ConfigError(
                    f"{path}: another file is called {path.stem!r} too. Rename one of them."
                )
            specs[path.stem] = read_pipeline(path)
        except ConfigError as error:
            broken[path] = error
    return specs, broken


def read_pipeline(path: Path) -> PipelineSpec:
    """One pipeline file; its name is the file's. Raises ConfigError with a line for each
    mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from error
    return parse_pipeline(text, path.stem, path.name)


def parse_pipeline(text: str, name: str, where: str) -> PipelineSpec:
    """A pipeline from YAML or JSON text; `where` stands in front of each error, and says whether it
    is JSON."""
    root = _compose(text.removeprefix("\ufeff"), where)
    problems = list(_check_keys(root, ()))
    spec: PipelineSpec | None = None
    try:
        values = yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:  # a tag such as !!python/object
        problems.append((_line(error), f"{error.problem}; write a plain value"))
    except ValueError as error:  # a date such as 2020-13-45
        problems.append(
            (root.start_mark.line + 1, f"a value cannot be read ({error}); put it in quotes")
        )
    else:
        if values.get("name", name) != name:
            problems.append(
                (
                    _place(root, ("name",))[0],
                    "name: the file's name is the pipeline's; leave this out",
                )
            )
        try:
            spec = PipelineSpec.model_validate({**values, "name": name})
        except ValidationError as error:
            told = ("invalid_key", "recursion_loop")  # by `_check_keys`
            problems += [
                _problem(root, detail) for detail in error.errors() if detail["type"] not in told
            ]
    if spec is None or problems:
        raise ConfigError(
            "\n".join(f"{where}:{line}: {_ended(what)}" for line, what in sorted(problems))
        )
    return spec


def _compose(text: str, where: str) -> yaml.MappingNode:
    """The nodes of the file, which know their lines."""
    if where.endswith(".json") or is_json(text):
        try:
            json.loads(text or "null")
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{where}:{error.lineno}: is not JSON: {error.msg} (column {error.colno})."
            ) from error
        text = text.replace("\t", " ")  # YAML refuses tabs; in JSON they are white space
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(
            f"{where}:{_line(error)}: is not YAML: {_in_plain_words(error)}"
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}:{line}: holds the control character #x{error.character:04x}. Remove it."
        ) from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ConfigError(
            f"{where}:1: holds no pipeline. It needs at least `source:` and `model:`."
        )
    return root


def is_json(text: str) -> bool:
    """Whether a pipeline file is written in JSON, whatever it is called."""
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _line(error: yaml.MarkedYAMLError) -> int:
    return error.problem_mark.line + 1 if error.problem_mark else 1


def _in_plain_words(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab stands here. Indent with spaces."
    if problem.startswith("mapping values are not allowed"):
        return "a second ': ' stands in this line; put the value in quotes, or begin a new line."
    if problem == "but found another document":
        return "a second document begins here; one file is one pipeline."
    if (error.context or "").startswith("while parsing a flow") and error.context_mark:
        opened = "{" if "mapping" in (error.context or "") else "["
        return f"{problem}; is the {opened!r} of line {error.context_mark.line + 1} closed?"
    return f"{problem}."


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Iterator[Problem]:
    """Keys that stand twice or are no text; and `${NAME}` is replaced in every string on the
    way."""
    if node in above:
        yield node.start_mark.line + 1, "refers to itself; write the value out"
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != TEXT_TAG:
                shown = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) and key.value else ""
                yield line, f"the key{shown} is not text; put it in quotes"
            elif key.value in seen:
                yield line, f"{key.value!r} stands twice, first in line {seen[key.value]}. Keep one"
            else:
                seen[key.value] = line
            yield from _check_keys(value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _check_keys(value, (*above, node))
    elif node.tag == TEXT_TAG:
        yield from _expand(node)


def _expand(node: yaml.Node) -> Iterator[Problem]:
    # JSON writes characters beyond the first 65,536 as two escapes, which YAML takes for two
    # characters.
    text = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for name in VARIABLE.findall(text):
        if name not in os.environ:
            yield (
                node.start_mark.line + 1,
                f"the environment variable {name!r} is not set. Set it, or write the value",
            )
    node.value = VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)


def _problem(root: yaml.Node, detail: ErrorDetails) -> Problem:
    """One pydantic error as its line and `option: what is wrong`."""
    line, path = _place(root, detail["loc"])
    option = ".".join(path)
    return line, f"{option}: {_what(detail)}" if option else _what(detail)


def _what(detail: ErrorDetails) -> str:
    kind, context, place, value = (
        detail["type"],
        detail.get("ctx", {}),
        detail["loc"],
        detail["input"],
    )
    if kind == "missing":
        hint = (
            "; write `source: {kind: csv, path: …}` or `data_path: …`"
            if place == ("source",)
            else ""
        )
        return f"is missing{hint}"
    if kind == "extra_forbidden":
        return f"is no option here{_near(str(place[-1]), _options(place[:-1]))}"
    if kind == "union_tag_invalid" or (kind == "literal_error" and place[-1] == "kind"):
        return f"{context.get('tag', value)!r} is not known{_near(str(context.get('tag', value)), _kinds(place))}"
    if kind == "union_tag_not_found":
        return f"needs a `{_tag(place)}`: one of {', '.join(_kinds(place))}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        kinds = _kinds(place)
        example = f", such as {{{_tag(place)}: {kinds[0]}, …}}" if kinds else ""
        return f"needs options{example}"
    wanted = {
        "tuple_type": "must be a list: [ … ]",
        "string_type": "must be text; put it in quotes",
        "int_parsing": f"must be a whole number, not {value!r}",
        "int_type": "must be a whole number",
        "int_from_float": f"must be a whole number, not {value!r}",
        "bool_parsing": f"must be true or false, not {value!r}",
        "bool_type": "must be true or false",
        "greater_than_equal": f"must be {context.get('ge')} or more, not {value!r}",
        "less_than_equal": f"must be {context.get('le')} or less, not {value!r}",
    }
    return wanted.get(kind, detail["msg"].removeprefix("Value error, "))


def _near(given: str, known: list[str]) -> str:
    """What the user may have meant."""
    near = difflib.get_close_matches(given, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(known)}" if known else ""


def _tag(place: tuple[int | str, ...]) -> str:
    return "provider" if place[0] == "model" else "kind"


def _kinds(place: tuple[int | str, ...]) -> list[str]:
    """The kinds there are to choose from at a place of the file."""
    found = [
        model.model_fields["kind"].default
        for model in _models_at(place)
        if "kind" in model.model_fields
    ]
    return sorted(found) if found or place[-1] != "kind" else _kinds(place[:-1])


def _options(place: tuple[int | str, ...]) -> list[str]:
    """The options there are at a place of the file, e.g. those of `("source", "csv")`."""
    names = dict.fromkeys(name for model in _models_at(place) for name in model.model_fields)
    if not place:
        del names["name"]  # the file's
    return [_tag(place) if name == "kind" else name for name in names]


def _models_at(place: tuple[int | str, ...]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [PipelineSpec]
    for part in place:
        of_kind = [
            model
            for model in models
            if "kind" in model.model_fields and model.model_fields["kind"].default == part
        ]
        if of_kind:
            models = of_kind
        elif isinstance(part, str):
            models = [
                found
                for model in models
                if part in model.model_fields
                for found in _models_in(model.model_fields[part].annotation)
            ]
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a union, a tuple or an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _place(root: yaml.Node, place: tuple[int | str, ...]) -> tuple[int, list[str]]:
    """The line of a place in the file, and how the file calls it: the tag of a union is not in
    it."""
    node, line, path = root, root.start_mark.line + 1, []
    for at, part in enumerate(place):
        found = _child(node, part)
        if found is not None:
            line, node = found
        elif at + 1 < len(place):
            continue  # a tag such as "csv"
        path.append(str(part))
    return line, path


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "?")) else f"{sentence}."


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    """The line and node of a key or an index below `node`."""
    if isinstance(node, yaml.MappingNode):
        names = ("kind", "provider") if part == "kind" else (part,)
        return next(
            (
                (key.start_mark.line + 1, value)
                for key, value in reversed(node.value)
                if key.value in names
            ),
            None,
        )
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None

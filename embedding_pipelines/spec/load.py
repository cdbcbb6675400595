"""Reads pipeline files, YAML or JSON, and reports all mistakes at once, each with its line."""

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

Problem = tuple[int, str]  # line, and what is wrong there

SUFFIXES = (".yaml", ".yml", ".json")
TEXT_TAG = "tag:yaml.org,2002:str"
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def pipeline_files(home: Path) -> list[Path]:
    """The pipeline files of a home folder, by name."""
    paths = pipelines_folder(home).glob("*")  # of no folder: none
    return sorted(path for path in paths if path.suffix in SUFFIXES)


def find_pipeline(name: str, home: Path) -> PipelineSpec:
    """The pipeline called `name`; ConfigError that names the nearest ones if there is none."""
    files = {path.stem: path for path in pipeline_files(home)}
    if name in files:
        return read_pipeline(files[name])
    others = "`embedding-pipelines example` makes two."
    if files:
        others = f"There are: {', '.join(sorted(files))}."
    raise ConfigError(
        f"There is no pipeline {name!r} in {pipelines_folder(home)}."
        f"{did_you_mean(name, files)} {others}"
    )


def read_pipelines(home: Path) -> tuple[dict[str, PipelineSpec], dict[Path, ConfigError]]:
    """All pipelines by name, and each broken file with its error."""
    specs: dict[str, PipelineSpec] = {}
    errors: dict[Path, ConfigError] = {}
    for path in pipeline_files(home):
        try:
            if path.stem in specs:
                raise ConfigError(
                    f"{path}: another file is called {path.stem!r} too. Rename one of them."
                )
            specs[path.stem] = read_pipeline(path)
        except ConfigError as error:
            errors[path] = error
    return specs, errors


def read_pipeline(path: Path) -> PipelineSpec:
    """One pipeline file, whose name it bears. Raises ConfigError with a line for each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from error
    return parse_pipeline(text, path.stem, path.name)


def parse_pipeline(text: str, name: str, where: str) -> PipelineSpec:
    """A pipeline from YAML or JSON text; errors begin with `where`, whose ending may be .json."""
    root = _compose(text.removeprefix("\ufeff"), where)
    problems = list(_check_keys(root, ()))
    spec: PipelineSpec | None = None
    try:
        values = yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:  # a tag such as !!python/object
        problems.append((_line(error), f"{error.problem}; write a plain value"))
    except ValueError as error:  # a date such as 2020-13-45
        line = root.start_mark.line + 1
        problems.append((line, f"a value cannot be read ({error}); put it in quotes"))
    else:
        if values.get("name", name) != name:
            line, _ = _place(root, ("name",))
            problems.append((line, "name: the file's name is the pipeline's; leave this out"))
        try:
            spec = PipelineSpec.model_validate({**values, "name": name})
        except ValidationError as error:
            for detail in error.errors():
                if detail["type"] not in ("invalid_key", "recursion_loop"):  # see `_check_keys`
                    line, option = _place(root, detail["loc"])
                    problems.append((line, f"{option}: {_what(detail)}".removeprefix(": ")))
    if spec is None or problems:
        lines = [f"{where}:{line}: {what}" for line, what in sorted(problems)]
        raise ConfigError(
            "\n".join(line if line.endswith((".", "?")) else f"{line}." for line in lines)
        )
    return spec


def _compose(text: str, where: str) -> yaml.MappingNode:
    """The file's nodes, which know their lines."""
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
        raise ConfigError(f"{where}:{_line(error)}: is not YAML: {_explain(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}:{line}: holds the control character #x{error.character:04x}. Remove it."
        ) from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ConfigError(f"{where}:1: holds no pipeline. Write at least `source:` and `model:`.")
    return root


def is_json(text: str) -> bool:
    """Whether a pipeline file is JSON, whatever its name."""
    try:
        return isinstance(json.loads(text), dict)
    except json.JSONDecodeError:
        return False


def _line(error: yaml.MarkedYAMLError) -> int:
    return error.problem_mark.line + 1 if error.problem_mark else 1


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab stands here. Indent with spaces."
    if problem.startswith("mapping values are not allowed"):
        return "a second ': ' stands in this line; put the value in quotes, or begin a new line."
    if problem == "but found another document":
        return "a second document begins here; one file is one pipeline."
    if (error.context or "").startswith("while parsing a flow") and error.context_mark:
        bracket = "{" if "mapping" in (error.context or "") else "["
        return f"{problem}; is the {bracket!r} of line {error.context_mark.line + 1} closed?"
    return f"{problem}."


def _check_keys(node: yaml.Node, above: tuple[yaml.Node, ...]) -> Iterator[Problem]:
    """Report keys that stand twice or are no text, and replace `${NAME}` in every string."""
    if node in above:
        yield node.start_mark.line + 1, "refers to itself; write the value out"
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != TEXT_TAG:
                name = f" {key.value!r}" if isinstance(key, yaml.ScalarNode) and key.value else ""
                yield line, f"the key{name} is not text; put it in quotes"
            elif key.value in lines:
                first = lines[key.value]
                yield line, f"{key.value!r} stands twice, first in line {first}. Keep one"
            else:
                lines[key.value] = line
            yield from _check_keys(value, (*above, node))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _check_keys(value, (*above, node))
    elif node.tag == TEXT_TAG:
        yield from _expand(node)


def _expand(node: yaml.Node) -> Iterator[Problem]:
    # JSON writes a character beyond the first 65,536 as two escapes, which YAML takes for two.
    text = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for name in VARIABLE.findall(text):
        if name not in os.environ:
            what = f"the environment variable {name!r} is not set. Set it, or write the value"
            yield node.start_mark.line + 1, what
    node.value = VARIABLE.sub(lambda match: os.environ.get(match[1], match[0]), text)


def _what(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    place, value = detail["loc"], detail["input"]
    if kind == "missing" and place == ("source",):
        return "is missing; write `source: {kind: csv, path: …}` or `data_path: …`"
    if kind == "missing":
        return "is missing"
    if kind == "extra_forbidden":
        return f"is no option here{_near(str(place[-1]), _options(place[:-1]))}"
    if kind == "union_tag_invalid" or (kind == "literal_error" and place[-1] == "kind"):
        tag = str(context.get("tag", value))
        return f"{tag!r} is not known{_near(tag, _kinds(place))}"
    if kind == "union_tag_not_found":
        return f"needs a `{_tag(place)}`: one of {', '.join(_kinds(place))}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        kinds = _kinds(place)
        return "needs options" + (f", such as {{{_tag(place)}: {kinds[0]}, …}}" if kinds else "")
    messages = {
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
    return messages.get(kind, detail["msg"].removeprefix("Value error, "))


def _near(given: str, names: list[str]) -> str:
    """What the user may have meant."""
    near = difflib.get_close_matches(given, names, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(names)}" if names else ""


def _tag(place: tuple[int | str, ...]) -> str:
    return "provider" if place[0] == "model" else "kind"


def _kinds(place: tuple[int | str, ...]) -> list[str]:
    """The kinds to choose from at a place of the file."""
    kinds = sorted(filter(None, map(_kind, _models_at(place))))
    return kinds if kinds or place[-1] != "kind" else _kinds(place[:-1])


def _options(place: tuple[int | str, ...]) -> list[str]:
    """The options at a place of the file, e.g. those of `("source", "csv")`."""
    names = dict.fromkeys(name for model in _models_at(place) for name in model.model_fields)
    if not place:
        del names["name"]  # the file's
    return [_tag(place) if name == "kind" else name for name in names]


def _models_at(place: tuple[int | str, ...]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = [PipelineSpec]
    for part in place:
        of_kind = [model for model in models if _kind(model) == part]
        if of_kind:
            models = of_kind
        elif isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [model for field in fields for model in _models_in(field.annotation)]
    return models


def _kind(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models in a union, a tuple or an optional one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _place(root: yaml.Node, place: tuple[int | str, ...]) -> tuple[int, str]:
    """The line of a place in the file, and the option there, without the tags of unions."""
    node, line, path = root, root.start_mark.line + 1, []
    for at, part in enumerate(place):
        child = _child(node, part)
        if child is not None:
            line, node = child
        elif at + 1 < len(place):
            continue  # a tag such as "csv"
        path.append(str(part))
    return line, ".".join(path)


def _child(node: yaml.Node, part: int | str) -> tuple[int, yaml.Node] | None:
    """The line and node of a key or an index below `node`; of a key that stands twice, the last."""
    if isinstance(node, yaml.MappingNode):
        names = ("kind", "provider") if part == "kind" else (part,)
        for key, value in reversed(node.value):
            if key.value in names:
                return key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        value = node.value[part]
        return value.start_mark.line + 1, value
    return None

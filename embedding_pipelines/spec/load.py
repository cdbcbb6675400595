"""Reads pipeline files, YAML or JSON, and reports all mistakes at once, each with its line.

Whatever lies in the folder, reading it ends soon: only regular files of a size that people write are
read, and their values are bounded before they are made.
"""

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from embedding_pipelines.errors import ConfigError, did_you_mean, fault_in_words, nearest_name
from embedding_pipelines.home import pipelines_folder
from embedding_pipelines.plugins import concrete
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.spec.pipeline import KEPT_AS_WRITTEN, PipelineSpec
from embedding_pipelines.variables import expand, restore, unset

Problem = tuple[int, str]  # line, and what is wrong there
Place = tuple[int | str, ...]  # of an option, from the top: ("source", "path", 0)

SUFFIXES = (".yaml", ".yml", ".json")
TEXT_TAG, MERGE_TAG = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
MAX_BYTES = 256 * 1024  # of a pipeline file
MAX_DEPTH = 40
MAX_VALUES = 20_000  # with what its aliases stand for
MAX_DIGITS = 40
MOST_PROBLEMS = 40  # that are told of one file
LONGEST_PROBLEM = 800  # characters of a line that quotes a value
LABEL = ("evaluation", "label")  # a column of the source, which may be wrong itself
PLACEHOLDERS = {"source": {"kind": "csv", "path": "-"}, "model": {"kind": "hashing"}}


@dataclass(frozen=True)
class Draft:
    """A pipeline file as far as it can be read: what is right in it can be looked at further."""

    problems: list[str]  # each a line for people; none: `spec` is the whole file
    spec: PipelineSpec | None  # of those sections that are right, the others by default; None: none
    wrong: frozenset[str]  # sections that are not right
    where: str
    root: yaml.Node | None = None

    def place(self, *option: int | str) -> str:
        """The file's name and the line of an option, or of the nearest one above it."""
        return f"{self.where}:{_place(self.root, option)[0]}" if self.root else self.where


def pipeline_files(home: Path) -> list[Path]:
    """The pipeline files of a home folder, by name; hidden ones, as editors leave them, are none.

    Raises ConfigError if the folder cannot be listed.
    """
    folder = pipelines_folder(home)
    return [folder / name for name in _file_names(folder)]


def pipeline_file(name: str, home: Path) -> Path | None:
    """The file of the pipeline called `name`, the first by name if there are more; None if there is
    none. Raises as `pipeline_files`; each search asks, so no path is made of other names."""
    folder = pipelines_folder(home)
    own = (each for each in _file_names(folder, f"{name}.") if os.path.splitext(each)[0] == name)
    return next((folder / each for each in own), None)


def _file_names(folder: Path, start: str = "") -> list[str]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be listed: {error.strerror}.") from error
    return sorted(
        name
        for name in names
        if name.startswith(start) and not name.startswith(".") and name.lower().endswith(SUFFIXES)
    )


def find_pipeline(name: str, home: Path | str) -> PipelineSpec:
    """The pipeline called `name`; ConfigError that names the nearest ones if there is none."""
    return read_pipeline(find_file(name, Path(home).expanduser()))


def find_file(name: str, home: Path) -> Path:
    """The file of the pipeline called `name`; ConfigError if there is none."""
    files: dict[str, Path] = {}
    for path in pipeline_files(home):
        files.setdefault(path.stem, path)
    if name in files:
        return files[name]
    others = (
        "`embedding-pipelines init FILE` writes one for a file of yours, `embedding-pipelines "
        "example` two with their data."
    )
    if files:
        others = f"There are: {', '.join(sorted(map(escaped, files)))}."
    raise ConfigError(
        f"There is no pipeline {name!r} in {pipelines_folder(home)}."
        f"{did_you_mean(name, files)} {others}"
    )


def read_pipelines(home: Path) -> tuple[dict[str, PipelineSpec], dict[Path, ConfigError]]:
    """All pipelines by name, and each broken file with its error."""
    specs: dict[str, PipelineSpec] = {}
    errors: dict[Path, ConfigError] = {}
    stems: set[str] = set()
    queues: dict[str, str] = {}
    for path in pipeline_files(home):
        try:
            if path.stem in stems:
                raise ConfigError(
                    f"{escaped(path)}: another file is called {path.stem!r} too. Rename one of "
                    "them."
                )
            stems.add(path.stem)
            spec = read_pipeline(path)
            if spec.events and (other := queues.setdefault(spec.events, path.name)) != path.name:
                raise ConfigError(
                    f"{escaped(path.name)}: events: {escaped(other)} names this queue too, and a "
                    "message reaches one of them alone. Give each a queue of its own, and have S3 "
                    "send its events to both by way of an SNS topic."
                )
            specs[path.stem] = spec
        except ConfigError as error:
            errors[path] = error
    return specs, errors


def read_pipeline(path: Path) -> PipelineSpec:
    """One pipeline file, whose name it bears. Raises ConfigError with a line for each mistake."""
    return _whole(read_draft(path))


def parse_pipeline(text: str, name: str, where: str) -> PipelineSpec:
    """A pipeline from YAML or JSON text; errors begin with `where`, whose ending may be .json."""
    return _whole(_draft(text, name, where))


def parse_model(text: str) -> ProviderOptions:
    """The options of a model as a pipeline file writes it: an alias, `provider:model`, or
    `{provider: hf, model: …, precision: int8}`. Raises ConfigError for another."""
    where = f"The model {text}"
    try:
        return parse_pipeline(f"model: {text}\nsource: {{kind: push}}\n", "model", where).model
    except ConfigError as error:  # it stands in no file
        raise ConfigError(str(error).replace(f"{where}:1: model", where)) from None


def read_draft(path: Path) -> Draft:
    """One pipeline file, as far as it can be read; it never raises for what is in the file."""
    where = escaped(path.name)
    try:
        return _draft(read_text(path), path.stem, where)
    except ConfigError as error:
        return Draft([str(error)], None, frozenset(), where)


def escaped(path: Path | str) -> str:
    """A path as text; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _whole(draft: Draft) -> PipelineSpec:
    if draft.problems or draft.spec is None:
        raise ConfigError("\n".join(draft.problems))
    return draft.spec


def read_text(path: Path) -> str:
    """The text of a regular file: opening a pipe would wait for its writer. Raises ConfigError."""
    name = escaped(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise ConfigError(f"{name}: is {kind}, not a file. Remove it from the folder.")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        words = error.strerror
        if path.is_symlink() and not path.exists():
            words = f"{words}; it links to {escaped(os.readlink(path))}"
        raise ConfigError(f"{name}: cannot be read: {words}. Check the path.") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(
            f"{name}: has more than {MAX_BYTES // 1024} KiB, which is no pipeline. Remove it from "
            "the folder."
        )
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in data[:4] and len(data) > 3):
        raise ConfigError(f"{name}: is UTF-16, not UTF-8. Save it as UTF-8.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name}: is not UTF-8 at byte {error.start}. Save it as UTF-8."
        ) from error


def _draft(text: str, name: str, where: str) -> Draft:
    root = _compose(text.removeprefix("\ufeff"), where)
    written: dict[str, str] = {}
    problems = list(_check_size(root)) or list(_check(root, (), written))
    spec, wrong = None, frozenset[str]()
    if not any("refers to itself" in what or "values" in what for _, what in problems):
        spec, wrong, more = _validate(root, name)
        problems += more
    if spec is not None:
        spec.keep_variables(written)
    lines = [f"{where}:{line}: {restore(what, written)}" for line, what in sorted(problems)]
    lines = [line if line.endswith((".", "?")) else f"{line}." for line in map(_short, lines)]
    lines = list(dict.fromkeys(lines))
    if len(lines) > MOST_PROBLEMS:
        lines = [*lines[:MOST_PROBLEMS], f"{where}: {len(lines) - MOST_PROBLEMS:,} mistakes more."]
    return Draft(lines, spec, wrong, where, root)


def _short(line: str) -> str:
    """A line without the middle of a very long value."""
    half = LONGEST_PROBLEM // 2
    return line if len(line) <= LONGEST_PROBLEM else f"{line[:half]} … {line[-half:]}"


def _validate(
    root: yaml.MappingNode, name: str
) -> tuple[PipelineSpec | None, frozenset[str], list[Problem]]:
    """What the file says, or as much of it as is right; its wrong sections; and what is wrong."""
    try:
        values = yaml.SafeLoader("").construct_document(root)
    except yaml.MarkedYAMLError as error:  # a tag such as !!python/object
        return None, frozenset(), [(_line(error), f"{error.problem}; write a plain value")]
    except (ValueError, OverflowError) as error:  # a date such as 2020-13-45
        line = root.start_mark.line + 1
        return None, frozenset(), [(line, f"a value cannot be read ({error}); put it in quotes")]
    problems: list[Problem] = []
    if values.get("name", name) != name:
        line, _ = _place(root, ("name",))
        problems.append((line, "name: the file's name is the pipeline's; leave this out"))
    wrong: set[str] = set()
    for _ in range(len(PLACEHOLDERS) + 2):  # a section that is put right may hide more mistakes
        try:
            spec = PipelineSpec.model_validate({**values, "name": name})
            return spec, frozenset(wrong), problems
        except ValidationError as error:
            details = error.errors()
        failed, options = set[str](), set[int | str]()
        for detail in details:
            # See `_check`; what a placeholder lacks is no mistake of the file.
            hidden = detail["type"] in ("invalid_key", "recursion_loop")
            place, what = _place_and_words(detail, root)
            if not hidden and not ("source" in wrong and place == LABEL):
                line, option = _place(root, place)
                problems.append((line, f"{option}: {what}".removeprefix(": ")))
                problems += _hidden(detail, values, root)
            if len(place) > 1 and place[0] == LABEL[0] and place[1] in values[LABEL[0]]:
                options.add(place[1])
            elif place and place[0] != "name":
                failed.add(str(place[0]))
        if not options and failed <= wrong:
            break
        wrong |= failed
        if options and LABEL[0] not in failed:  # the other ones are looked at
            rest = {key: value for key, value in values[LABEL[0]].items() if key not in options}
            values = {**values, LABEL[0]: rest}
        if failed & {"source", "data_path", "input_type"}:
            values = {key: values[key] for key in values if key not in ("data_path", "input_type")}
            failed.add("source")
        values = {key: value for key, value in values.items() if key not in failed}
        values |= {key: PLACEHOLDERS[key] for key in failed & PLACEHOLDERS.keys()}
    return None, frozenset(wrong), problems


def _place_and_words(detail: ErrorDetails, root: yaml.Node) -> tuple[tuple[int | str, ...], str]:
    """Where a mistake stands, and its words. They may begin with the option of the place."""
    place, what = detail["loc"], _what(detail)
    name, colon, rest = what.partition(": ")
    if not colon or not re.fullmatch("[a-z_]+", name):
        return place, what
    node: yaml.Node | None = root
    for part in place:
        child = _child(node, part) if node is not None else None
        node = child[1] if child else None
    if node is None or _child(node, name) is None:
        return place, what
    return (*place, name), rest


def _hidden(detail: ErrorDetails, values: Any, root: yaml.Node) -> Iterator[Problem]:
    """What is wrong beside a `kind` that is missing or misspelled: as if it were the nearest one."""
    place = detail["loc"]
    if detail["type"] not in ("union_tag_invalid", "union_tag_not_found"):
        return
    for part in place:
        values = values[part]
    if not isinstance(values, dict):
        return
    tag = str(detail.get("ctx", {}).get("tag", ""))
    models = {str(_kind(model)): model for model in _models_at(place)}
    near = nearest_name(tag, models)
    path = values.get("path")
    for kind, model in models.items():
        suffixes = getattr(model, "suffixes", ())
        if not near and isinstance(path, str) and suffixes and path.lower().endswith(suffixes):
            near = kind
    options = {key: value for key, value in values.items() if key not in ("kind", "provider")}
    if not near:
        every = {name for model in models.values() for name in model.model_fields}
        for key in options:
            if key not in every:
                line, option = _place(root, (*place, str(key)))
                yield line, f"{option}: is no option here{_near(str(key), sorted(every))}"
        return
    try:
        models[near].model_validate({**options, "kind": near})
    except ValidationError as error:
        for other in error.errors():
            loc = (*place, near, *other["loc"])
            line, option = _place(root, loc)
            yield line, f"{option}: {_what({**other, 'loc': loc})}".removeprefix(": ")


class _Loader(yaml.SafeLoader):
    """Composes nodes down to MAX_DEPTH: it goes down by recursion."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_DEPTH} levels deep", mark)
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return node


def _compose(text: str, where: str) -> yaml.MappingNode:
    """The file's nodes, which know their lines."""
    if where.endswith(".json") or is_json(text):
        try:
            json.loads(text or "null", parse_int=len)  # of any number of digits
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"{where}:{error.lineno}: is not JSON: {error.msg} (column {error.colno})."
            ) from error
        except RecursionError:  # which composing it says better
            pass
        text = text.replace("\t", " ")  # YAML refuses tabs; in JSON they are white space
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        raise ConfigError(f"{where}:{_line(error)}: is not YAML: {_explain(error)}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{where}:{line}: holds the control character #x{error.character:04x}. Remove it."
        ) from error
    except ValueError as error:  # an escape such as \U00110000
        raise ConfigError(f"{where}: is not YAML: {error}.") from error
    if not isinstance(root, yaml.MappingNode) or not root.value:
        raise ConfigError(f"{where}:1: holds no pipeline. Write at least `source:` and `model:`.")
    return root


def is_json(text: str) -> bool:
    """Whether a pipeline file is JSON, whatever its name."""
    try:
        return isinstance(json.loads(text, parse_int=len), dict)
    except (json.JSONDecodeError, RecursionError):
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


def _check_size(root: yaml.Node) -> Iterator[Problem]:
    """Aliases that refer to themselves, or stand for more than anybody writes."""
    sizes: dict[int, int] = {}
    above: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in above:
            raise yaml.MarkedYAMLError(problem_mark=node.start_mark)
        if id(node) not in sizes:
            above.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            above.discard(id(node))
        return sizes[id(node)]

    try:
        if size(root) > MAX_VALUES:
            line = root.start_mark.line + 1
            yield line, f"its aliases stand for more than {MAX_VALUES:,} values; write fewer"
    except yaml.MarkedYAMLError as error:
        yield _line(error), "refers to itself; write the value out"


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _check(node: yaml.Node, place: Place, written: dict[str, str]) -> Iterator[Problem]:
    """Report keys that stand twice or are no text and values that nothing can be, and replace
    `${NAME}` in every string; `written` gets each as it was."""
    line = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            yield from _check_key(key, lines)
            name = key.value if isinstance(key, yaml.ScalarNode) else ""
            yield from _check(value, (*place, name), written)
    elif isinstance(node, yaml.SequenceNode):
        for at, value in enumerate(node.value):
            yield from _check(value, (*place, at), written)
    elif node.tag == TEXT_TAG:
        yield from _check_text(node, place, written)
    elif isinstance(node, yaml.ScalarNode) and node.tag in NUMBER_TAGS:
        if len(node.value) > MAX_DIGITS:
            yield line, f"a number of {len(node.value):,} characters; write a shorter one"
            node.value = "0"
        elif node.tag == NUMBER_TAGS[1] and not math.isfinite(
            yaml.SafeLoader("").construct_yaml_float(node)
        ):
            yield line, f"{node.value} is no finite number; write one"


def _check_key(key: yaml.Node, lines: dict[str, int]) -> Iterator[Problem]:
    line = key.start_mark.line + 1
    if key.tag == MERGE_TAG:
        return
    if key.tag != TEXT_TAG:
        name = f" {key.value[:40]!r}" if isinstance(key, yaml.ScalarNode) and key.value else ""
        yield line, f"the key{name} is not text; put it in quotes"
        if isinstance(key, yaml.ScalarNode):
            key.tag = TEXT_TAG
    elif key.value in lines:
        yield line, f"{key.value!r} stands twice, first in line {lines[key.value]}. Keep one"
    else:
        yield from _check_characters(key)
    lines.setdefault(key.value if isinstance(key.value, str) else "", line)


def _check_text(node: yaml.Node, place: Place, written: dict[str, str]) -> Iterator[Problem]:
    # JSON writes a character beyond the first 65,536 as two escapes, which YAML takes for two.
    text = node.value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    node.value = text
    yield from _check_characters(node)
    for name in unset(text):
        what = f"the environment variable {name!r} is not set. Set it, or write the value"
        yield node.start_mark.line + 1, what
    if place[:2] == ("migration", "old_model"):
        place = ("model", *place[2:])
    if place[:2] in KEPT_AS_WRITTEN:
        return
    node.value = expand(text)
    if node.value != text:
        written[node.value] = text
        if place == ("model",) and ":" in node.value and "${" in text.partition(":")[2]:
            written[node.value.partition(":")[2]] = text.partition(":")[2]
        yield from _check_characters(node)


def _check_characters(node: yaml.Node) -> Iterator[Problem]:
    line = node.start_mark.line + 1
    if "\0" in node.value:
        yield line, "a text holds the character U+0000; leave it out"
        node.value = node.value.replace("\0", "")
    try:
        node.value.encode()
    except UnicodeEncodeError:
        yield line, "a text holds half a surrogate pair, which is no character; write the whole one"
        node.value = node.value.encode("utf-8", "replace").decode()


def _what(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    place, value = detail["loc"], detail["input"]
    if kind == "missing" and place == ("source",):
        return "is missing; write `source: {kind: csv, path: …}` or `data_path: …`"
    if kind == "extra_forbidden":
        return f"is no option here{_near(str(place[-1]), _options(place[:-1]))}"
    if kind == "union_tag_invalid" or (kind == "literal_error" and place[-1] == "kind"):
        tag = str(context.get("tag", value))
        return f"{tag!r} is not known{_near(tag, _kinds(place))}"
    if kind == "literal_error":
        names = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return f"{value!r} is not known{_near(str(value), names)}"
    if kind == "union_tag_not_found":
        return f"needs a `{_tag(place)}`: one of {', '.join(_kinds(place))}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        kinds = _kinds(place)
        return "needs options" + (f", such as {{{_tag(place)}: {kinds[0]}, …}}" if kinds else "")
    words = fault_in_words(detail)
    return f"{words}; put it in quotes" if kind == "string_type" else words


def _near(word: str, names: list[str]) -> str:
    """What the user may have meant."""
    if near := nearest_name(word, names):
        return f"; did you mean {near!r}?"
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
    """The models in a union, a tuple or an optional one, and the choices of a stage."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return concrete(annotation)
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _place(root: yaml.Node, place: tuple[int | str, ...]) -> tuple[int, str]:
    """The line of a place in the file, and the option there, without the tags of unions."""
    node, line, path = root, root.start_mark.line + 1, []
    for at, part in enumerate(place):
        child = _child(node, part)
        if child is not None:
            line, node = child
        elif at + 1 < len(place) or _is_tag(node, part):
            continue  # a tag such as "csv"
        path.append(str(part))
    return line, ".".join(path)


def _is_tag(node: yaml.Node, part: int | str) -> bool:
    """Whether `part` is the kind of what stands at `node`."""
    if isinstance(node, yaml.MappingNode):
        child = _child(node, "kind")
        return child is not None and child[1].value == part
    return isinstance(node, yaml.ScalarNode) and node.value.partition(":")[0] == part


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

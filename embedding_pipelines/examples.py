"""Example data that every machine with Python already has, so that the first run downloads nothing.

data/stdlib/<letter>.jsonl     docstrings of Python's standard library, read from its source by
syntax tree data/unicode/characters.csv    characters and their names, from Python's Unicode
database pipelines/*.yaml               the two pipelines over them, where the home folder lacks
them

The same Python always writes the same bytes, and a file that would not change is not touched.
Nothing is embedded here.
"""

import ast
import csv
import io
import json
import re
import sys
import sysconfig
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedding_pipelines.errors import SourceError
from embedding_pipelines.files import write_atomic

_PIPELINES = ("stdlib.yaml", "unicode.yaml")
# Applications, grammars, generated text; distutils is deprecated and gone from Python 3.12 on.
_LEFT_OUT = {"distutils", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
_TESTS = {"test", "tests"}
_NAMED = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_KINDS: dict[type, str] = {ast.Module: "module", ast.ClassDef: "class"}  # the rest are functions
_MENTION = re.compile(r"\b(\w+)\(\)|\bthe (\w+) function\b")
_SEEN_FUNCTIONS, _SEEN_PARAGRAPHS = 2, 2  # of the functions that a docstring refers to
_NUMBERED = ("HANGUL SYLLABLE ", "TANGUT COMPONENT-")  # names made by rule, thousands of them
# fmt: off
_CATEGORIES = {  # Unicode's general categories that hold named characters
    "Lu": "Letter, uppercase", "Ll": "Letter, lowercase", "Lt": "Letter, titlecase",
    "Lm": "Letter, modifier", "Lo": "Letter, other",
    "Mn": "Mark, nonspacing", "Mc": "Mark, spacing combining", "Me": "Mark, enclosing",
    "Nd": "Number, decimal digit", "Nl": "Number, letter", "No": "Number, other",
    "Pc": "Punctuation, connector", "Pd": "Punctuation, dash", "Ps": "Punctuation, open",
    "Pe": "Punctuation, close", "Pi": "Punctuation, initial quote", "Pf": "Punctuation, final quote",
    "Po": "Punctuation, other", "Sm": "Symbol, math", "Sc": "Symbol, currency",
    "Sk": "Symbol, modifier", "So": "Symbol, other",
    "Zs": "Separator, space", "Zl": "Separator, line", "Zp": "Separator, paragraph", "Cf": "Other, format",
}
# fmt: on


@dataclass(frozen=True)
class Written:
    """One example file as it now stands."""

    path: Path
    rows: int  # documents in it; 0 for a pipeline file
    changed: bool  # False: it held these bytes already and was left alone
    skipped: tuple[str, ...] = ()  # source files that belong in it and could not be read


def write_examples(home: Path) -> list[Written]:
    """Write the example data below `home`; SourceError where Python came without its source."""
    data = [*_write_stdlib(home / "data" / "stdlib"), _write_unicode(home / "data" / "unicode")]
    missing = [name for name in _PIPELINES if not (home / "pipelines" / name).exists()]
    return data + [
        _write(home / "pipelines" / name, (_shipped() / name).read_bytes(), 0) for name in missing
    ]


def stdlib_modules(folder: Path) -> list[tuple[str, Path]]:
    """Full name and file of each module of the standard library in `folder`, sorted; its tests left
    out."""
    found = []
    for path in folder.rglob("*.py"):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[0] in sys.stdlib_module_names - _LEFT_OUT and not _TESTS & set(parts):
            found.append((".".join(parts).removesuffix(".__init__"), path))
    return sorted(found)


def documented(source: bytes, module: str) -> Iterator[dict[str, Any]]:
    """The module and each class, function and method in it that has a docstring, in source order.

    A second definition of a name (a property's setter, the other branch of an `if`) is `name~2`.
    Functions within functions are left out: nobody can call them. SyntaxError or ValueError if it
    is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in somebody else's source
        tree = ast.parse(source)
    seen: Counter[str] = Counter()
    found: dict[str, tuple[Any, str]] = {}
    for name, node in _definitions(tree, module):
        if doc := (ast.get_docstring(node) or "").strip():
            seen[name] += 1
            found[name if seen[name] == 1 else f"{name}~{seen[name]}"] = node, doc
    docs = {name: doc for name, (_, doc) in found.items()}
    for name, (node, doc) in found.items():
        summary, _, details = doc.partition("\n\n")
        yield {
            "name": name,
            "kind": _KINDS.get(type(node), "function"),
            "module": module,  # in full, as one imports it: "xml.dom.minidom"
            "line": getattr(node, "lineno", 1),
            "summary": summary,  # the docstring's first paragraph
            "see": "\n".join(_see(name, doc, module, docs)),
            "details": details.strip(),
        }


def _see(name: str, doc: str, module: str, docs: dict[str, str]) -> Iterator[str]:
    """What the functions beside it do that a docstring refers to: "Metadata is copied with
    copystat()" says little to a reader, or a model, who does not know that one.
    """
    mentioned = dict.fromkeys(
        group for match in _MENTION.finditer(doc) for group in match.groups() if group
    )
    scopes = dict.fromkeys((name.rpartition(".")[0], module))
    beside = [f"{scope}.{word}" for word in mentioned for scope in scopes]
    known = [other for other in beside if other in docs and other != name]
    for other in known[:_SEEN_FUNCTIONS]:
        paragraphs = docs[other].split("\n\n")[:_SEEN_PARAGRAPHS]
        yield f"{other.rpartition('.')[2]}: {' '.join(' '.join(paragraphs).split())}"


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Any]]:
    """The node under its dotted name if it can have a docstring, then whatever is defined in it."""
    if isinstance(node, ast.Module | _NAMED):
        yield name, node
    if isinstance(
        node, ast.Module | ast.ClassDef | ast.If | ast.Try | ast.With | ast.ExceptHandler
    ):
        for child in ast.iter_child_nodes(node):
            own = f".{child.name}" if isinstance(child, _NAMED) else ""
            yield from _definitions(child, name + own)


def _write_stdlib(folder: Path) -> Iterator[Written]:
    """One file per first letter of the module's name, leading underscores aside."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    lines: defaultdict[str, list[str]] = defaultdict(list)
    skipped: defaultdict[str, list[str]] = defaultdict(list)
    for module, path in stdlib_modules(stdlib):
        letter = module.lstrip("_")[0].lower()
        try:
            lines[letter] += [
                json.dumps(found) + "\n" for found in documented(path.read_bytes(), module)
            ]
        except (SyntaxError, ValueError, OSError):
            skipped[letter].append(str(path))
    if not any(lines.values()):
        raise SourceError(
            f"{stdlib}: no documented Python source; run a Python that comes with its own."
        )
    for letter in sorted({*lines, *skipped}):
        text = "".join(lines[letter])
        yield _write(
            folder / f"{letter}.jsonl", text.encode(), len(lines[letter]), tuple(skipped[letter])
        )


def named_characters() -> Iterator[tuple[str, str, str, str, str]]:
    """Code point, character, name, category and its two letters, without the names that are only
    numbers."""
    for number in range(sys.maxunicode + 1):
        name = unicodedata.name(chr(number), "")
        if name and not name.endswith(f"-{number:04X}") and not name.startswith(_NUMBERED):
            code = unicodedata.category(chr(number))
            yield f"U+{number:04X}", chr(number), name, _CATEGORIES[code], code


def _write_unicode(folder: Path) -> Written:
    rows = list(named_characters())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("code_point", "character", "name", "category", "category_code"))
    writer.writerows(rows)
    return _write(folder / "characters.csv", text.getvalue().encode(), len(rows))


def _write(path: Path, data: bytes, rows: int, skipped: tuple[str, ...] = ()) -> Written:
    """Replace a file in one rename, unless it holds these bytes already."""
    if path.exists() and path.read_bytes() == data:
        return Written(path, rows, False, skipped)
    write_atomic(path, data)
    return Written(path, rows, True, skipped)


def _shipped() -> Path:
    """The pipelines as installed inside the package, or at the root of a source tree."""
    installed = Path(__file__).parent / "_pipelines"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "pipelines"

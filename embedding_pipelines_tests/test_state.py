"""No module of the package keeps state: what changes or must be closed belongs to an object that
somebody opens."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import embedding_pipelines

PACKAGE = Path(embedding_pipelines.__file__).parent

# Functions of the language's own values alone, whose results nobody has to close or to forget.
PURE = {
    "providers/hashing.py:_direction": "a word's direction, by the word and nothing else",
    "plugins.py:_all_entry_points": "what is installed, which a process does not change",
    "extras.py:version_of": "what is installed, which a process does not change",
    "plugins.py:choices": "the classes that are installed, which a process does not change",
    "inference/torch.py:accelerator": "the device of this machine",
    "inference/weights.py:_sha256": "the digest of a file, by path, size and time",
    "inference/openvino.py:BINDING_LOCK": "guards statics of OpenVINO's C++, which a process has once",
    "providers/custom.py:IMPORTING": "guards sys.path and sys.modules",
    "extras.py:IMPORTING": "guards sys.modules",
}

CACHES = {"cache", "lru_cache"}
STATEFUL = {  # what a call at a module's level makes that is bound to change
    "Barrier", "BoundedSemaphore", "Condition", "Counter", "Event", "Lock", "RLock", "Semaphore",
    "WeakKeyDictionary", "WeakSet", "WeakValueDictionary", "count", "cycle", "defaultdict", "deque",
    "local",
}  # fmt: skip
CONTAINERS = {"dict", "list", "set", "OrderedDict"}
MUTATIONS = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem",
    "remove", "setdefault", "update",
}  # fmt: skip


def _name(node: ast.expr | None) -> str:
    """The last part of a dotted name: `lru_cache` of `functools.lru_cache(maxsize=1)`."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _assignments(tree: ast.Module) -> dict[str, ast.expr]:
    """The values that stand at a module's level or in a class's body, by name."""
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    values: dict[str, ast.expr] = {}
    for node in (node for body in bodies for node in body):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=True))
                values |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and node.value and isinstance(node.target, ast.Name):
            values[node.target.id] = node.value
    return values


def _mutations(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The names that code inside functions changes in place, and where; `global` included."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Global):
                yield from ((name, node.lineno) for name in node.names)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr in MUTATIONS:
                    yield _name(node.func.value), node.lineno
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                yield _name(node.value), node.lineno


def state_in(source: str) -> list[tuple[str, str]]:
    """Name and description of what a module's source keeps between calls."""
    tree = ast.parse(source)
    faults = [
        (node.name, "is cached for the whole process")
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and any(_name(decorator) in CACHES for decorator in node.decorator_list)
    ]
    values = _assignments(tree)
    for name, value in values.items():
        if isinstance(value, ast.Call) and _name(value) in STATEFUL:
            faults.append((name, f"is one {_name(value)} for the whole process"))
        if isinstance(value, ast.Call) and _name(value.func) in CACHES:
            faults.append((name, "is cached for the whole process"))
    containers = {
        name
        for name, value in values.items()
        if isinstance(
            value, ast.Dict | ast.List | ast.Set | ast.DictComp | ast.ListComp | ast.SetComp
        )
        or (isinstance(value, ast.Call) and _name(value) in CONTAINERS)
    }
    for name, line in _mutations(tree):
        if name in containers:
            faults.append((name, f"is changed in line {line}"))
    faults += [
        (name, "is assigned by a function")
        for node in ast.walk(tree)
        if isinstance(node, ast.Global)
        for name in node.names
    ]
    return faults


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    """What each file keeps beside what is PURE."""
    faults: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE).as_posix()
        for name, description in state_in(file.read_text("utf-8")):
            if f"{path}:{name}" not in PURE:
                faults.setdefault(path, []).append(f"{path}: {name} {description}")
    return faults


def test_no_module_keeps_state(faults: dict[str, list[str]]) -> None:
    lines = [line for lines in faults.values() for line in lines]
    assert not lines, "\n".join(["Give it to the object that needs it:", *lines])


def test_what_is_pure_is_still_cached() -> None:
    for entry in PURE:
        path, _, name = entry.partition(":")
        assert name in dict(state_in((PACKAGE / path).read_text("utf-8"))), entry


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("@functools.cache\ndef client(): ...", "client"),
        ("@lru_cache(maxsize=32)\ndef _info(tei): ...", "_info"),
        ("class A:\n    @functools.cache\n    def client(self): ...", "client"),
        ("client = functools.lru_cache(maxsize=1)(make)", "client"),
        ("_LOCK = threading.Lock()", "_LOCK"),
        ("_SESSION, _NUMBERS = 1, itertools.count(1)", "_NUMBERS"),
        ("class A:\n    lock: Lock = Lock()", "lock"),
        ("CACHE: dict[str, int] = {}\ndef keep(): CACHE['a'] = 1", "CACHE"),
        ("CACHE = dict()\ndef drop(): del CACHE['a']", "CACHE"),
        ("SEEN = set()\ndef see(name): SEEN.add(name)", "SEEN"),
        ("last = 0\ndef next_():\n    global last\n    last += 1", "last"),
    ],
)
def test_state_is_found(source: str, name: str) -> None:
    assert name in dict(state_in(source))


@pytest.mark.parametrize(
    "source",
    [
        "TABLE = {'a': 1}\ndef look(name): return TABLE[name]",
        "class A:\n    @functools.cached_property\n    def client(self): ...",
        "def count():\n    lock, rows = threading.Lock(), []\n    rows.append(lock)",
    ],
)
def test_what_nobody_changes_is_no_state(source: str) -> None:
    assert not state_in(source)

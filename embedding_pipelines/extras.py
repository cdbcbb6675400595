"""What is installed: an import that fails for want of an optional part names its extra."""

import functools
import sys
import threading
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

from embedding_pipelines.errors import ConfigError

FEATURES = {  # by extra of pyproject.toml: what does not work without it
    "aios": "The provider aios",
    "assistants": "The tools of an assistant",
    "buckets": "A path in an object store",
    "evaluation": "An evaluation with qrels",
    "explore": "Exploring a table",
    "finetune": "Fine-tuning",
    "huggingface": "A dataset of the Hugging Face hub",
    "images": "A source of images",
    "int8": "Precision int8",
    "local": "A model on this machine, or a file of tensors,",
    "openai": "The provider openai",
    "pdf": "The source pdf",
    "ray": "The engine ray",
    "report": "A report",
    "serving": "The server",
    "telemetry": "Sending traces",
    "sql": "A source in PostgreSQL",
    "tensorflow": "The provider tensorflow",
    "word2vec": "Training word2vec",
}

# A compiled module may end in a panic if it is loaded twice; sys.modules belong to the process.
IMPORTING = threading.RLock()


@functools.cache
def version_of(package: str) -> str:
    """The installed version, for fingerprints. Kept, since finding it takes a millisecond and a run
    without work asks fifty times."""
    return version(package)


def require(module: str, extra: str) -> None:
    """Raise as `need` without the package, and import nothing: heavy ones take seconds."""
    if find_spec(module) is None:
        raise _missing(module, extra, f"no module {module!r}")


def need(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra installs. Raises ConfigError with the command to run."""
    try:
        return import_module(module)
    except ImportError as error:
        raise _missing(module, extra, str(error)) from error


def part(package: str, name: str) -> Any:
    """A module of a package by its name there, without the package around it, whose own imports may
    take far longer. An import of the package before or after it has the same module.

    Raises ModuleNotFoundError without it.
    """
    full = f"{package}.{name}"
    if full in sys.modules:
        return sys.modules[full]
    with IMPORTING:
        if full not in sys.modules:
            around = find_spec(package)
            spec = around and PathFinder.find_spec(full, around.submodule_search_locations)
            if not spec or not spec.loader:
                raise ModuleNotFoundError(f"No module named {full!r}", name=full)
            module = module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[full] = module  # when it is whole, for other threads look without the lock
        return sys.modules[full]


def need_part(package: str, name: str, extra: str) -> Any:
    """`part` of a package that the extra installs. Raises as `need`."""
    try:
        return part(package, name)
    except ImportError as error:
        raise _missing(package, extra, str(error)) from error


def _missing(module: str, extra: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{FEATURES[extra]} needs the package {module.partition('.')[0]} ({problem}); "
        f"run: pip install 'embedding-pipelines[{extra}]'"
    )

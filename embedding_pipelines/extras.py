"""What is installed: an import that fails for want of an optional part names its extra."""

import functools
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType

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


def _missing(module: str, extra: str, problem: str) -> ConfigError:
    return ConfigError(
        f"{FEATURES[extra]} needs the package {module.partition('.')[0]} ({problem}); "
        f"run: pip install 'embedding-pipelines[{extra}]'"
    )

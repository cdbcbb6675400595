"""What a sentence-transformers model's files say, and its converted graph: made once, kept in the
user's cache folder.

A cache folder belongs to one digest of the model's files and one version of OpenVINO. It holds
`config.json`, `tokenizer.json` and, unless OpenVINO cannot run the model, `model.xml` and
`model.bin`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.inference import openvino as _openvino
from embedding_pipelines.inference import torch as _torch
from embedding_pipelines.inference.backend import damage_error
from embedding_pipelines.inference.cache import fill_folder
from embedding_pipelines.inference.weights import folder_sha256, revision_sha256, weights_sha256
from embedding_pipelines.schemas import digest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer

CACHE_LAYOUT = "7"  # raise it when what is cached changes
CONFIG = "config.json"
MAX_TOKENS = 8_192  # of a text, where a model says infinity
PROMPT_NAMES = {
    "document": ("document", "passage", "corpus"),
    "query": ("query",),
}  # as models call them


@dataclass(frozen=True)
class ModelConfig:
    """What a model's own files say about its vectors."""

    revision: str
    dimensions: int
    max_tokens: int
    max_document_tokens: int  # what a document's prompt leaves of max_tokens
    pooling: str
    normalized: bool
    prompts: dict[str, str]  # by input type
    pad_id: int
    pools_prompts: bool
    # By input type: tokens of the prompt that pooling leaves out, [CLS] included.
    unpooled: dict[str, int]
    cut: str  # the side at which texts that are too long lose their end
    special_tokens: bool
    tokenizer: str  # digest of its definition
    problem: str  # why OpenVINO cannot run it; empty if it can


def convert(folder: Path) -> tuple[Path, ModelConfig]:
    """The cache folder of a model, filled if it is not, and its configuration. Raises ProviderError
    if it is no model."""
    weights_sha256(folder)  # a folder without weights is rejected before anything is loaded
    cache = _cache_folder(folder_sha256(folder))
    if not (cache / CONFIG).exists():
        _fill(cache, folder)
    return cache, ModelConfig(**json.loads((cache / CONFIG).read_text(encoding="utf-8")))


def with_prompts(
    config: ModelConfig, prompts: Mapping[str, str], tokenizer: Tokenizer
) -> ModelConfig:
    """The configuration with other prompts by input type than the model's own files name; an empty
    one is none.

    Raises ProviderError if a prompt leaves no room for a text.
    """
    prompts = {input_type: prompt for input_type, prompt in prompts.items() if prompt}
    tokens = {
        input_type: len(tokenizer.encode(text, add_special_tokens=False).ids)
        for input_type, text in prompts.items()
    }
    around = tokenizer.num_special_tokens_to_add(False)
    for input_type, count in tokens.items():
        if count + around >= config.max_tokens:
            raise ProviderError(
                f"prompts: the one for {input_type!r} has {count} tokens and leaves no room for a "
                f"text: the model reads {config.max_tokens}. Write a shorter one."
            )
    unpooled = {}
    if not config.pools_prompts:
        unpooled = {name: _prompt_length(text, tokenizer) for name, text in prompts.items()}
    left = config.max_tokens - tokens.get("document", 0)
    return replace(config, prompts=prompts, max_document_tokens=left, unpooled=unpooled)


def load_tokenizer(cache: Path) -> Tokenizer:
    """The model's own, which neither pads nor cuts."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(cache / "tokenizer.json"))
    except Exception as error:  # tokenizers raises nothing narrower
        raise damage_error(cache, error) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _cache_folder(content: str) -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("embedding-pipelines") / (
        f"{content[:32]}-openvino-{version('openvino')}-{CACHE_LAYOUT}"
    )


def _fill(cache: Path, folder: Path) -> None:
    """Fill the cache folder of the model in `folder`."""
    model = _torch.load(folder)
    with fill_folder(cache, CONFIG) as draft:
        getattr(model.tokenizer, "backend_tokenizer", model.tokenizer).save(
            str(draft / "tokenizer.json")
        )
        problem = ""
        try:
            _openvino.save_graph(model, draft / "model.xml")
        except (OSError, MemoryError):
            raise  # of this machine and moment, not of the model
        except Exception as error:  # noqa: BLE001 - OpenVINO's and torch's own share no class
            problem = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            for half in draft.glob("model.*"):
                half.unlink()
        config = asdict(_config(model, folder, load_tokenizer(draft), problem))
        (draft / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _config(
    model: SentenceTransformer, folder: Path, tokenizer: Tokenizer, problem: str
) -> ModelConfig:
    modules = [type(module).__name__ for module in model]
    pooling: Any = next((module for module in model if type(module).__name__ == "Pooling"), None)
    prompts = {
        input_type: prompt
        for input_type, names in PROMPT_NAMES.items()
        if (prompt := _prompt(model, names))
    }
    dimensions = model.get_embedding_dimension()
    if dimensions is None:
        raise ProviderError(
            f"{folder}: the model does not say how many dimensions its vectors have."
        )
    max_tokens = int(min(model.max_seq_length or 512, MAX_TOKENS))
    tokens = len(tokenizer.encode(prompts.get("document", ""), add_special_tokens=False).ids)
    pools_prompts = pooling is None or pooling.include_prompt
    first: Any = model[0]
    unpooled = {}
    if not pools_prompts:
        unpooled = {name: first._get_prompt_length(text) for name, text in prompts.items()}
    return ModelConfig(
        revision=revision_sha256(folder),
        dimensions=dimensions,
        max_tokens=max_tokens,
        max_document_tokens=max_tokens - tokens,
        pooling=_pooling(pooling.pooling_mode) if pooling is not None else "none",
        normalized=modules[-1] == "Normalize",
        prompts=prompts,
        pad_id=int(getattr(model.tokenizer, "pad_token_id", None) or 0),
        pools_prompts=pools_prompts,
        unpooled=unpooled,
        cut=getattr(model.tokenizer, "truncation_side", "right"),
        special_tokens="StaticEmbedding" not in modules,
        tokenizer=digest(tokenizer.to_str().encode()).hex(),
        problem=problem,
    )


def _prompt_length(prompt: str, tokenizer: Tokenizer) -> int:
    """Tokens before the text: the prompt's and a special one in front, not the one at the end."""
    encoding = tokenizer.encode(prompt)
    return len(encoding.ids) - (encoding.special_tokens_mask[-1] if encoding.ids else 0)


def _prompt(model: SentenceTransformer, names: Sequence[str]) -> str:
    """The prompt of an input type, chosen as sentence-transformers' `encode_document` and
    `encode_query` do."""
    prompts = model.prompts or {}
    name = next((name for name in names if name in prompts), model.default_prompt_name)
    return str(prompts.get(name) or "") if name else ""


def _pooling(mode: str | Sequence[str]) -> str:
    return mode if isinstance(mode, str) else "+".join(mode)

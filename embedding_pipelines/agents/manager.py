"""Builds generators from the embedding models of an agent's specification."""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from embedding_pipelines.agents.base import AbstractEmbeddingGenerator, Metrics
from embedding_pipelines.agents.generators import (
    AIOSEmbeddings,
    HuggingFaceEmbeddingGenerator,
    OpenAIEmbeddingGenerator,
)
from embedding_pipelines.errors import ConfigError

log = logging.getLogger(__name__)

EMBEDDINGS = "embeddings"
GENERATORS = (OpenAIEmbeddingGenerator, HuggingFaceEmbeddingGenerator, AIOSEmbeddings)
BACKENDS = {cls.provider: cls for cls in GENERATORS}  # by the prefix of a block id


@dataclass
class ModelItem:
    """One model of a subject's specification."""

    llm_type: str
    llm_block_id: str
    llm_selection_query: dict[str, Any] = field(default_factory=dict)
    llm_parameters: dict[str, Any] = field(default_factory=dict, repr=False)  # may hold a key


Select = Callable[[ModelItem], Mapping[str, Any]]


class EmbeddingGeneratorManager:
    """Generators by name. Raises ConfigError for an unknown name."""

    def __init__(self) -> None:
        self._generators: dict[str, AbstractEmbeddingGenerator] = {}

    def register_generator(self, name: str, generator: AbstractEmbeddingGenerator) -> None:
        """Name a generator; it replaces an earlier one of that name."""
        self._generators[name] = generator

    def generate(self, name: str, text: str) -> list[float]:
        return self._generator(name).generate(text)

    def generate_batch(self, name: str, texts: Sequence[str]) -> list[list[float]]:
        return self._generator(name).generate_batch(texts)

    def set_parameter(self, name: str, key: str, value: Any) -> None:
        self._generator(name).set_parameter(key, value)

    def get_parameter(self, name: str, key: str) -> Any:
        return self._generator(name).get_parameter(key)

    @property
    def metrics(self) -> dict[str, Metrics]:
        """By the generators' names."""
        return {name: generator.metrics for name, generator in self._generators.items()}

    def _generator(self, name: str) -> AbstractEmbeddingGenerator:
        if name not in self._generators:
            raise ConfigError(
                f"No generator is called {name!r}; there are "
                f"{', '.join(self._generators) or 'none'}."
            )
        return self._generators[name]


def build_embeddings_from_model_item(
    item: Mapping[str, Any] | ModelItem, select: Select | None = None
) -> AbstractEmbeddingGenerator:
    """The generator of a model item, whose `llm_type` is "embeddings" by default.

    `llm_selection_query` names a deployment, tenant or region. AIOS looks for it itself; for the
    other backends `select` does: it is given the item, and returns what its `llm_parameters` become
    for the deployment, such as `{"base_url": …}`. Without it, a query that selects nothing is a
    warning in the log.

    Raises ConfigError for a wrong item, NotImplementedError for an unknown backend, and whatever
    `select` raises.
    """
    item = _item(item)
    where = item.llm_block_id
    if item.llm_type != EMBEDDINGS:
        raise ConfigError(f"{where}: llm_type is {item.llm_type!r}; write {EMBEDDINGS!r}.")
    kind, colon, target = where.partition(":")
    if not colon or kind not in BACKENDS:
        raise NotImplementedError(f"Unknown embeddings backend for {where}")
    cls = BACKENDS[kind]
    target_argument = cls.OPTIONS["model"]
    if not isinstance(item.llm_parameters, Mapping):
        raise ConfigError(f"{where}: llm_parameters is not a mapping of names to values.")
    query = item.llm_selection_query or {}
    if not isinstance(query, Mapping):
        raise ConfigError(f"{where}: llm_selection_query is not a mapping of names to values.")
    arguments = dict(item.llm_parameters)
    if query and select is not None:
        arguments |= select(item)
    model = arguments.pop("model", None)
    if model and target and model != target:
        raise ConfigError(
            f"{where}: llm_parameters.model is another one, {model!r}. Keep one of them."
        )
    if target or model:
        arguments[target_argument] = target or model
    if "api_key_ref" in arguments:
        reference = arguments.pop("api_key_ref")
        arguments["api_key"] = arguments.get("api_key") or _key_at(reference)
    parameters = inspect.signature(cls).parameters
    if "selection_query" in parameters:
        arguments["selection_query"] = dict(query)
    elif query and select is None:
        log.warning(
            "%s: llm_selection_query (%s) selects nothing: %r has one address. Name the deployment "
            "in llm_parameters, or give `select`, which chooses it.",
            *(where, ", ".join(map(str, query)), kind),
        )
    if unknown := sorted(arguments.keys() - parameters.keys()):
        allowed = ", ".join(sorted({*parameters, "model"} - {target_argument, "selection_query"}))
        raise ConfigError(
            f"{where}: llm_parameters.{unknown[0]} is unknown; write one of {allowed}."
        )
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise ConfigError(f"{where}: llm_parameters.{name} is missing.")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def generators_of_subject(
    spec: Mapping[str, Any], select: Select | None = None
) -> EmbeddingGeneratorManager:
    """A manager with the embedding models of a subject's specification, by block id.

    Raises as `build_embeddings_from_model_item`, and ConfigError for no such model, or one twice.
    """
    subject = f"subject {spec.get('subject_id')!r}"
    models = spec.get("models")
    if not isinstance(models, list):
        raise ConfigError(f"{subject}: models is missing, or not a list.")
    manager = EmbeddingGeneratorManager()
    for number, model in enumerate(models):
        where = f"{subject}: models[{number}]"
        if not isinstance(model, Mapping) or "llm_type" not in model:
            raise ConfigError(f"{where} has no llm_type.")
        if model["llm_type"] != EMBEDDINGS:
            continue
        try:
            generator = build_embeddings_from_model_item(model, select)
            name = model["llm_block_id"]
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if name in manager.metrics:
            raise ConfigError(f"{where} repeats {name}. Keep one, or build them one by one.")
        manager.register_generator(name, generator)
    if not manager.metrics:
        raise ConfigError(f"{subject}: no model has llm_type {EMBEDDINGS!r}.")
    return manager


def _item(item: Mapping[str, Any] | ModelItem) -> ModelItem:
    if isinstance(item, ModelItem):
        return item
    names = [field.name for field in fields(ModelItem)]
    unknown = sorted(item.keys() - set(names))
    if unknown:
        raise ConfigError(f"A model item has no {unknown[0]!r}; it has {', '.join(names)}.")
    if not isinstance(item.get("llm_block_id"), str):
        raise ConfigError("A model item needs llm_block_id, e.g. 'openai:text-embedding-3-small'.")
    return ModelItem(**{"llm_type": EMBEDDINGS, **item})


def _key_at(reference: object) -> str:
    """An `api_key_ref` as generators take it: a bare path becomes "file:/path".

    Raises ConfigError for anything else, without repeating it: it may be a key.
    """
    if isinstance(reference, str) and reference.startswith(("env:", "file:")):
        return reference
    if isinstance(reference, str) and reference.startswith(("/", "./", "../", "~")):
        return f"file:{reference}"
    raise ConfigError(
        "api_key_ref names the place of a key: write 'env:NAME' or 'file:/path'. Its value is not "
        "shown, since it may be a key."
    )

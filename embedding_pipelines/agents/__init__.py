"""The agents' SDK on top of the embedding service; vectors are plain lists of floats."""

from embedding_pipelines.agents.base import AbstractEmbeddingGenerator, Call, Metrics
from embedding_pipelines.agents.generators import (
    AIOSEmbeddings,
    HuggingFaceEmbeddingGenerator,
    OpenAIEmbeddingGenerator,
)
from embedding_pipelines.agents.manager import (
    EmbeddingGeneratorManager,
    ModelItem,
    build_embeddings_from_model_item,
    generators_of_subject,
)

__all__ = [
    "AIOSEmbeddings",
    "AbstractEmbeddingGenerator",
    "Call",
    "EmbeddingGeneratorManager",
    "HuggingFaceEmbeddingGenerator",
    "Metrics",
    "ModelItem",
    "OpenAIEmbeddingGenerator",
    "build_embeddings_from_model_item",
    "generators_of_subject",
]

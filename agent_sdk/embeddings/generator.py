"""The generators under the path at which agents import them: `embedding_pipelines.agents`."""

from embedding_pipelines.agents import (
    AbstractEmbeddingGenerator,
    AIOSEmbeddings,
    EmbeddingGeneratorManager,
    HuggingFaceEmbeddingGenerator,
    ModelItem,
    OpenAIEmbeddingGenerator,
    build_embeddings_from_model_item,
)

__all__ = [
    "AIOSEmbeddings",
    "AbstractEmbeddingGenerator",
    "EmbeddingGeneratorManager",
    "HuggingFaceEmbeddingGenerator",
    "ModelItem",
    "OpenAIEmbeddingGenerator",
    "build_embeddings_from_model_item",
]

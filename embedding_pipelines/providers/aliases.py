"""The short names of models that a pipeline file may use."""

from typing import Any, NamedTuple


class Alias(NamedTuple):
    """The target of an alias: provider, model, and the commit of a model from the hub.

    The commit keeps the weights of an alias the same. Each is one that MTEB's figures or the cards
    of derived models name; none was checked at the hub itself.
    """

    provider: str
    model: str = ""
    revision: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """As a pipeline file would write them."""
        options = {"kind": self.provider, "model": self.model, "revision": self.revision}
        return {name: value for name, value in options.items() if value}

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}"


ALIASES: dict[str, Alias] = {
    "bert": Alias(
        "hf", "google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594"
    ),
    "minilm": Alias(
        "hf", "sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    ),
    "mpnet": Alias(
        "hf", "sentence-transformers/all-mpnet-base-v2", "e8c3b32edf5434bc2275fc9bab85f82640a19130"
    ),
    "bge-small": Alias("hf", "BAAI/bge-small-en-v1.5", "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"),
    "bge-base": Alias("hf", "BAAI/bge-base-en-v1.5", "a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"),
    "bge-large": Alias("hf", "BAAI/bge-large-en-v1.5", "d4aa6901d3a41ba39fb536a557fa166f842b0e09"),
    "bge-m3": Alias("hf", "BAAI/bge-m3", "5617a9f61b028005a4858fdac845db406aefb181"),
    "e5-small": Alias("hf", "intfloat/e5-small-v2", "ffb93f3bd4047442299a41ebb6fa998a38507c52"),
    "e5-base": Alias("hf", "intfloat/e5-base-v2", "f52bf8ec8c7124536f0efb74aca902b2995e5bcd"),
    "e5-large": Alias("hf", "intfloat/e5-large-v2", "f169b11e22de13617baa190a028a32f3493550b6"),
    "multilingual-e5": Alias(
        "hf", "intfloat/multilingual-e5-base", "835193815a3936a24a0ee7dc9e3d48c1fbb19c55"
    ),
    "nomic": Alias(
        "hf", "nomic-ai/nomic-embed-text-v1.5", "e9b6763023c676ca8431644204f50c2b100d9aab"
    ),
    "gte": Alias("hf", "thenlper/gte-base", "c078288308d8dee004ab72c6191778064285ec0c"),
    "mxbai": Alias(
        "hf", "mixedbread-ai/mxbai-embed-large-v1", "db9d1fe0f31addb4978201b2bf3e577f3f8900d2"
    ),
    "arctic": Alias(
        "hf", "Snowflake/snowflake-arctic-embed-l-v2.0", "edc2df7b6c25794b340229ca082e7c78782e6374"
    ),
    "qwen3": Alias("hf", "Qwen/Qwen3-Embedding-0.6B", "c54f2e6e80b2d7b7de06f51cec4959f6b3e03418"),
    "embeddinggemma": Alias(
        "hf", "google/embeddinggemma-300m", "57c266a740f537b4dc058e1b0cda161fd15afa75"
    ),
    "word2vec": Alias("word2vec"),  # from a file or trained on the pipeline's own texts
    "hashing": Alias("hashing"),
    "ollama": Alias("ollama", "nomic-embed-text"),
    "openai-small": Alias("openai", "text-embedding-3-small"),
    "openai-large": Alias("openai", "text-embedding-3-large"),
    "openai-ada": Alias("openai", "text-embedding-ada-002"),
    "cohere": Alias("cohere", "embed-v4.0"),
    "voyage": Alias("voyage", "voyage-4"),
    "voyage-large": Alias("voyage", "voyage-4-large"),
    "voyage-lite": Alias("voyage", "voyage-4-lite"),
    "gemini": Alias("gemini", "gemini-embedding-2"),
}

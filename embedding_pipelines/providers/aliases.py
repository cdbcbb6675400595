"""Short names for models that a pipeline file may use; the published table, nothing else."""

ALIASES: dict[str, str] = {
    "bert": "hf:google-bert/bert-base-uncased",  # 768 dimensions, mean pooling; English
    "minilm": "hf:sentence-transformers/all-MiniLM-L6-v2",  # 384 dimensions; English
    "mpnet": "hf:sentence-transformers/all-mpnet-base-v2",
    "bge-small": "hf:BAAI/bge-small-en-v1.5",
    "bge-base": "hf:BAAI/bge-base-en-v1.5",
    "bge-large": "hf:BAAI/bge-large-en-v1.5",
    "bge-m3": "hf:BAAI/bge-m3",
    "e5-small": "hf:intfloat/e5-small-v2",
    "e5-base": "hf:intfloat/e5-base-v2",
    "e5-large": "hf:intfloat/e5-large-v2",
    "multilingual-e5": "hf:intfloat/multilingual-e5-base",
    "nomic": "hf:nomic-ai/nomic-embed-text-v1.5",
    "gte": "hf:thenlper/gte-base",
    "mxbai": "hf:mixedbread-ai/mxbai-embed-large-v1",
    "arctic": "hf:Snowflake/snowflake-arctic-embed-l-v2.0",
    "qwen3": "hf:Qwen/Qwen3-Embedding-0.6B",
    "embeddinggemma": "hf:google/embeddinggemma-300m",
    "word2vec": "word2vec:",  # from a file, or learnt from the pipeline's own texts: its options say
    "hashing": "hashing:",
    "ollama": "ollama:nomic-embed-text",
    "openai-small": "openai:text-embedding-3-small",
    "openai-large": "openai:text-embedding-3-large",
    "openai-ada": "openai:text-embedding-ada-002",
    "cohere": "cohere:embed-v4.0",
    "voyage": "voyage:voyage-4",
    "voyage-large": "voyage:voyage-4-large",
    "voyage-lite": "voyage:voyage-4-lite",
    "gemini": "gemini:gemini-embedding-2",
}

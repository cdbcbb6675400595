"""Short names for models that a pipeline file may use; the published table, nothing else."""

ALIASES: dict[str, str] = {
    "bert": "hf:google-bert/bert-base-uncased",  # 768 dimensions, mean pooling; English
    "minilm": "hf:sentence-transformers/all-MiniLM-L6-v2",  # 384 dimensions; English
}

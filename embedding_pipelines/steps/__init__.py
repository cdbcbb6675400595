"""Steps: what each asset does, without Dagster. One file per asset, in the order the data takes:

documents → chunks → (model) → embeddings → codec → vector_store → (verify) → release
"""

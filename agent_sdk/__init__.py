"""The import paths of the agents' SDK; the code is `embedding_pipelines.agents`."""

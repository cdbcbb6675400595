"""Preprocessing: cleans documents and cuts them into chunks that the model can take."""

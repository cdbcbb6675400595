"""Forgetting: documents are erased for good, from every file that a pipeline keeps."""

"""The server: an HTTP API over the pipelines of one home folder."""

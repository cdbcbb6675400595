"""Every error a user can meet, and a guess at what was meant.

EmbeddingPipelinesError            what went wrong, where, what to do next
├── ConfigError                    a pipeline file, an option or an environment variable
├── SourceError                    a missing file, a wrong column, duplicate ids, too many bad rows
├── ProviderError                  a model that cannot be loaded, a reply that cannot be believed
├── BudgetError                    a run has spent what it may
├── SpaceMismatchError             vectors of two spaces would meet
├── CompressionError               a codec that cannot be fitted or applied
├── StoreError                     a table, an index or a filter
├── ReleaseError                   nothing released yet, or a version that its checks did not pass
└── BusyError                      another process holds the pipeline

The text of each is complete: command line, API and Dagster print it without a traceback. It never
holds a secret.
"""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """A question, with a space before it, if one of the known names is near; else nothing."""
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class EmbeddingPipelinesError(Exception):
    """Base of all errors that a user can mend; `str(error)` is the whole story."""


class ConfigError(EmbeddingPipelinesError):
    """A pipeline file, an option or an environment variable is wrong."""


class SourceError(EmbeddingPipelinesError):
    """The input files cannot be read as the pipeline says."""


class ProviderError(EmbeddingPipelinesError):
    """The embedding model is not to be had, or its reply cannot be believed."""


class BudgetError(EmbeddingPipelinesError):
    """The run has spent what its budget allows; the next one goes on from there."""


class SpaceMismatchError(EmbeddingPipelinesError):
    """Vectors of two spaces would have been compared."""


class CompressionError(EmbeddingPipelinesError):
    """A codec cannot be fitted to the vectors, loaded or applied."""


class StoreError(EmbeddingPipelinesError):
    """A table, an index or a filter of the vector store is wrong."""


class ReleaseError(EmbeddingPipelinesError):
    """No release to read, or a version that did not pass its checks."""


class BusyError(EmbeddingPipelinesError):
    """Another process is at work on this pipeline."""

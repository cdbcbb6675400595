"""Every error a user can meet, and a guess at what was meant.

EmbeddingPipelinesError            what went wrong, where, what to do next
├── ConfigError                    a pipeline file, an option or an environment variable
├── SourceError                    a missing file, a wrong column, duplicate ids, too many bad rows
├── ProviderError                  the model is unavailable or returned an invalid reply
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
    """The model is unavailable or returned an invalid reply. Its subclasses say what to do next."""


class Busy(ProviderError):
    """Flow control (429, 503): send the same request again, later."""

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Unreachable(ProviderError):
    """A fault on the way or in the service (timeout, reset, 500): the same request may succeed."""


class InvalidReply(Unreachable):
    """A reply with status 200 that makes no sense: probably billed, and worth nothing."""


class BadInput(ProviderError):
    """The service rejects a text of this request (400, 422) and always will."""


class TooLarge(ProviderError):
    """The request holds too much, though each text may be right (413): split it."""


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

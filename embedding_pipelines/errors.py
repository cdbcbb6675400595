"""All errors that a user can meet, and a guess at what a wrong name meant.

The text of each says what went wrong, where, and what to do next. It stands for itself: command
line, API and Dagster print it without a traceback. It never holds a secret.
"""

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(given: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """A question, with a space before it, if one of the names is near; else nothing."""
    near = difflib.get_close_matches(given, list(names), n=1, cutoff=likeness)
    return f" Did you mean {near[0]!r}?" if near else ""


def error_lines(error: BaseException) -> list[str]:
    """The lines of an error's text; the name of its class if it has none."""
    return str(error).strip().splitlines() or [type(error).__name__]


class EmbeddingPipelinesError(Exception):
    """Base of all errors that a user can fix; `str(error)` says how."""


class ConfigError(EmbeddingPipelinesError):
    """A pipeline file, an option or an environment variable is wrong."""


class SourceError(EmbeddingPipelinesError):
    """The input files cannot be read as the pipeline says."""

    columns: Sequence[str] = ()  # those that a file has, where it lacks one


class ProviderError(EmbeddingPipelinesError):
    """The model is unavailable or returned an invalid reply. Its subclasses say what to do next."""


class Busy(ProviderError):
    """Flow control (429, 503): send the same request again, later."""

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class Unreachable(ProviderError):
    """A fault of network or service (timeout, reset, 500): the same request may succeed later."""


class InvalidReply(Unreachable):
    """A reply with status 200 that cannot be used, though the service may have billed it."""


class BadInput(ProviderError):
    """The service rejects a text of this request (400, 422), now and later."""


class TooLarge(ProviderError):
    """The request is too large, though each text may be right (413): split it."""


class BudgetError(EmbeddingPipelinesError):
    """The run has used up its budget; the next run goes on from there."""


class SpaceMismatchError(EmbeddingPipelinesError):
    """Vectors of two spaces cannot be compared."""


class CompressionError(EmbeddingPipelinesError):
    """A codec cannot be fitted to the vectors, loaded or applied."""


class StoreError(EmbeddingPipelinesError):
    """A table, an index or a filter of the vector store is wrong."""


class ReleaseError(EmbeddingPipelinesError):
    """No release yet, or a version that failed its checks."""


class BusyError(EmbeddingPipelinesError):
    """Another process holds the pipeline."""

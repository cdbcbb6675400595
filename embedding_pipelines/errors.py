"""All errors that a user can meet, a guess at what a wrong name meant, and what a wrong value must be.

The text of each says what went wrong, where, and what to do next. It stands for itself: command
line, API and Dagster print it without a traceback. It never holds a secret.
"""

import difflib
import errno
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any


def nearest_name(word: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """The name that somebody may have meant by a word, empty if none is near."""
    return next(iter(difflib.get_close_matches(word, list(names), n=1, cutoff=likeness)), "")


def did_you_mean(word: str, names: Iterable[str], likeness: float = 0.6) -> str:
    """A question, with a space before it, if one of the names is near; else nothing."""
    near = nearest_name(word, names, likeness)
    return f" Did you mean {near!r}?" if near else ""


def counted(number: int, noun: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


MUST_BE = {  # by pydantic's name of a fault: a value of another type, and what it must be
    "string_type": "text",
    "list_type": "a list: [ … ]",
    "tuple_type": "a list: [ … ]",
    "dict_type": "an object: { … }",
    "model_type": "an object: { … }",
    "model_attributes_type": "an object: { … }",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
QUOTED = ("int_parsing", "int_from_float", "float_parsing", "bool_parsing")  # values that say why
BOUNDS = {"ge": "{} or more", "le": "{} or less", "gt": "more than {}", "lt": "less than {}"}
# What pydantic puts into a place for the type that it tried, of several that a value may have.
TRIED = re.compile(
    r"str|int|float|bool|(constrained-|function-|(list|dict|tuple|literal)\[).*|[A-Z].*"
)
KEY_FAULTS = ("missing", "extra_forbidden")
LONGEST_VALUE = 60  # characters of one that is quoted


def fault_in_words(fault: Mapping[str, Any]) -> str:
    """What pydantic has against a value, to follow its place: `must be a whole number, not '3.5'`.
    Without `input` in the fault no value is quoted."""
    kind, context = fault["type"], fault.get("ctx", {})
    value = f", not {_shortened(fault['input'])}" if "input" in fault else ""
    if kind in MUST_BE:
        return f"must be {MUST_BE[kind]}{value if kind in QUOTED else ''}"
    for name, words in BOUNDS.items():
        if name in context:
            bound = context[name]
            bound = f"{bound:g}" if isinstance(bound, float) else bound
            return f"must be {words.format(bound)}{value}"
    least, most = context.get("min_length"), context.get("max_length")
    unit = "characters" if kind.startswith("string_") else "entries"
    if least is not None:
        return "must not be empty" if least == 1 else f"must have {least:,} {unit} or more"
    if most is not None:
        return f"must have {most:,} {unit} at most"
    sentences = {
        "missing": "is missing",
        "extra_forbidden": "is no option here",
        "literal_error": f"must be {context.get('expected')}{value}",
    }
    message: str = fault["msg"].removeprefix("Value error, ")
    return sentences.get(kind, re.sub(r"^\w+ should ", "must ", message))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def faults_in_words(faults: Iterable[Mapping[str, Any]]) -> str:
    """All that pydantic has against some values, each with its place: `input[3]: must be text`.

    A value that may be of several types has a fault of each. Those of other types than it has are
    told together, and only where it is of none.
    """
    by_place: dict[str, list[Mapping[str, Any]]] = {}
    for fault in faults:
        by_place.setdefault(_place_in_words(fault), []).append(fault)
    lines = []
    for place, group in by_place.items():
        own = [fault for fault in group if fault["type"] not in MUST_BE]
        is_deeper = any(other.startswith((f"{place}.", f"{place}[")) for other in by_place)
        words = dict.fromkeys(map(fault_in_words, own or ([] if is_deeper else group)))
        types = [each.removeprefix("must be ") for each in words if each.startswith("must be ")]
        others = [each for each in words if not each.startswith("must be ")]
        together = [*([f"must be {' or '.join(types)}"] if types else []), *others]
        lines += [f"{place}: {each}" if place else each for each in together]
    return "; ".join(lines)


def _place_in_words(fault: Mapping[str, Any]) -> str:
    """`input[3]`, without the types that were tried."""
    text, location = "", fault["loc"]
    key = len(location) - 1 if fault["type"] in KEY_FAULTS else 0  # is told, whatever it is called
    for number, part in enumerate(location):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not text or number == key or not TRIED.fullmatch(part):
            text += f".{part}" if text else part
    return text


REMEDIES = {  # by the system's number of an error
    errno.ENOSPC: "Free some space on that disk",
    errno.EDQUOT: "Free some space, or have the quota raised",
    errno.EROFS: "Make that disk writable, or give another folder by --home",
    errno.EACCES: "Give this user the right to it, or give another folder by --home",
    errno.EPERM: "Give this user the right to it, or give another folder by --home",
    errno.EMFILE: "Allow more open files (`ulimit -n 1024`)",
    errno.ENFILE: "Close other programs: the whole machine has no open files left",
    errno.EIO: "Look after that disk",
}


def describe_os_error(error: OSError) -> str:
    """An error of the system in a sentence, with what to do."""
    number = error.errno or 0
    # Arrow gives its own words in place of the system's, and no name.
    words = os.strerror(number) if number else " ".join(error_lines(error))
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    if not place and isinstance(error.filename, os.PathLike):
        place = f"{error.filename}: "
    what_next = REMEDIES.get(number, "Look after it")
    return (
        f"{place}{words.rstrip('.')}. {what_next}, then try again; what was released is as before."
    )


def error_lines(error: BaseException) -> list[str]:
    """The lines of an error's text; the name of its class if it has none."""
    return str(error).strip().splitlines() or [type(error).__name__]


class EmbeddingPipelinesError(Exception):
    """Base of all errors that a user can fix; `str(error)` says how."""


class ConfigError(EmbeddingPipelinesError):
    """A pipeline file, an option or an environment variable is wrong."""


class ExistsError(ConfigError):
    """A name is taken by something else."""


class SourceError(EmbeddingPipelinesError):
    """The input files cannot be read as the pipeline says."""

    columns: Sequence[str] = ()  # those that a file has, where it lacks one


class SourceGoneError(SourceError):
    """An input that was listed is gone: it was renamed or deleted before it was read."""


class DocumentError(EmbeddingPipelinesError):
    """A document that a program pushes is none that the pipeline can take."""


class BucketError(EmbeddingPipelinesError):
    """A bucket of an object store cannot be opened, listed or read."""


class ObjectGoneError(BucketError):
    """An object that was listed is gone: it was renamed or deleted before it was read."""


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


class DeviceError(ProviderError):
    """The device computes nothing more in this process; in another one it may."""


class BudgetError(EmbeddingPipelinesError):
    """The run has used up its budget; the next run goes on from there."""


class EngineError(EmbeddingPipelinesError):
    """The workers of a cluster cannot be had, or are lost."""


class QuarantineError(EngineError):
    """Shards that ended the workers that had them; all others are done."""

    def __init__(self, text: str, shards: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(text)
        self.shards = shards  # and how each ended its workers


class SpaceMismatchError(EmbeddingPipelinesError):
    """Vectors of two spaces cannot be compared."""


class CompressionError(EmbeddingPipelinesError):
    """A codec cannot be fitted to the vectors, loaded or applied."""


class StoreError(EmbeddingPipelinesError):
    """A table, an index or a filter of the vector store is wrong."""


class FilterError(StoreError):
    """A filter of a search that cannot be used; the text says what it may be."""


class PermissionsError(EmbeddingPipelinesError):
    """Nobody says for whom a pipeline with permissions is read."""


class PermissionsLostError(PermissionsError):
    """A pipeline's permissions cannot be read: until they can, it answers nothing."""

    @property
    def brief(self) -> str:
        """The sentence for whoever asks: where they are, and what stands in them, is not theirs."""
        return f"{str(self).partition(': ')[0]}. Whoever runs the server sees why in its log."


class ReleaseError(EmbeddingPipelinesError):
    """No release yet, or a version that failed its checks."""


class BundleError(EmbeddingPipelinesError):
    """A bundle cannot be made, is damaged, or is not what it says."""


class TargetError(EmbeddingPipelinesError):
    """An endpoint refused a deployment, or failed in the middle of one."""


class BusyError(EmbeddingPipelinesError):
    """Another process holds the pipeline."""

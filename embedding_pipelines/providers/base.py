"""The contract of all providers: options in a file, which open a live model that embeds texts."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self

import numpy as np

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.plugins import Choice
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors as Vectors  # which others import from here

if TYPE_CHECKING:
    from tokenizers import Tokenizer

InputType = Literal["document", "query"]
NO_SECRETS: Mapping[str, str] = MappingProxyType({})

NORM_TOLERANCE = (
    1e-3  # float32 rounding over 4,096 dimensions stays below 1e-5; half precision below 1e-3
)


@dataclass(frozen=True)
class Limits:
    """What one call to the provider may hold."""

    max_tokens: int  # per text, special tokens included
    request_tokens: int  # summed over the texts of one call
    request_texts: int
    concurrent_requests: int = 1  # `embed` is then called from that many threads
    request_bytes: int | None = (
        None  # summed over the texts of one call, in UTF-8; None: no such limit
    )


@dataclass(frozen=True)
class Response:
    """What one request returned: vectors float32[n, d] in the order of its texts."""

    vectors: Vectors  # a row of NaN for a text that the service left out
    tokens: int | None = None  # as the service bills them; None if it does not say
    copies: Mapping[Space, Vectors] = field(
        default_factory=dict
    )  # the same texts in other spaces, for nothing more
    rejected: Mapping[int, str] = field(default_factory=dict)  # rows of NaN that stay so, and why


@dataclass(frozen=True)
class BatchText:
    """What became of one text of a batch: a vector float32[d], or the service's words."""

    id: str
    vector: Vectors | None
    words: str = ""
    is_rejected: bool = False  # for ever; else the text may be sent again


@dataclass(frozen=True)
class BatchState:
    """How a batch stands. One that has ended may have results of some of its texts only."""

    has_ended: bool
    done: int  # texts
    tokens: int | None = None  # as billed, once it has ended and if the service says so
    failure: str = ""  # the service's words if it took in nothing at all


class BatchService(ABC):
    """A service that takes many texts at once and answers within a day, for less. Raises as
    `Provider.ask`."""

    max_texts: int  # of one batch
    max_bytes: int

    @abstractmethod
    def submit(self, texts: Mapping[str, str], input_type: InputType, tag: str) -> str:
        """Hand over texts by id; the batch's own id. `tag` is kept with it, for `find`."""

    @abstractmethod
    def find(self, tag: str) -> str | None:
        """The batch that was submitted with `tag`, if it ever came to that."""

    @abstractmethod
    def state(self, batch: str) -> BatchState: ...

    @abstractmethod
    def results(self, batch: str) -> Iterator[BatchText]:
        """What became of the texts of a batch that has ended; those that are not named may be sent
        again."""


@dataclass(frozen=True)
class RateLimit:
    """Whose requests share one pace, and what the account allows, if that is stated."""

    key: str  # a digest: tells nothing of the API key that is part of it
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class ProviderOptions(Choice):
    """What a pipeline file says of its model: frozen, pure data. `open` makes the live model."""

    @abstractmethod
    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> "EmbeddingModel":
        """The live model. Loads nothing and calls nobody: what is expensive waits until it is used.

        `home` is what relative paths start from; `folder` is where a model that `trains` keeps its
        result; `secrets` are looked up by name before the environment is.
        """

    @property
    def price(self) -> float | None:
        """USD per million tokens of direct requests; 0 on this machine, None if unknown."""
        return 0.0

    @property
    def batch_price(self) -> float | None:
        """As `price`, for batch jobs."""
        return self.price

    @property
    def uses_batch_jobs(self) -> bool:
        """Whether documents go through batch jobs. Queries and checks never do."""
        return False

    @property
    def trains(self) -> bool:
        """Whether the model is trained on the pipeline's own texts before it can embed."""
        return False


class EmbeddingModel(ABC):
    """A live model: client or engine, tokenizer, identity and limits. Any number of threads may
    use it; whoever opened it closes it.

    `space`, `limits` and the tokenizer are read once, at first use. That may load a model's files
    or make a request, and raises ProviderError if the model is unavailable.
    """

    rate_limit: RateLimit | None = None  # None: nobody limits requests, and each is made once
    batch_service: BatchService | None = None

    def __init__(self, options: ProviderOptions) -> None:
        self.options = options

    @property
    @abstractmethod
    def space(self) -> Space:
        """The identity of the vectors."""

    @property
    @abstractmethod
    def limits(self) -> Limits: ...

    @property
    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """The model's own tokenizer, for counting and cutting."""

    @property
    def tokenizer_digest(self) -> str:
        """Identifies how texts are counted and cut, without loading a tokenizer that is large."""
        return digest(self.tokenizer.to_str().encode()).hex()

    @property
    def computed_by(self) -> str:
        """Library, device and precision of the last vectors, for reports; empty for a service."""
        return ""

    @abstractmethod
    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        """One request: vectors float32[len(inputs), space.dimensions] in the order of `inputs`.

        Raises ProviderError if the model is unavailable; a service Busy, Unreachable, BadInput or
        TooLarge where that says what to do next.
        """

    def release_options(self, folder: Path) -> ProviderOptions:
        """The options that a release records. A user's file that may change is copied to `folder`
        first, and the options name the copy."""
        return self.options

    def close(self) -> None:
        """Free connections and memory; closing twice does no harm."""
        return  # most models hold neither

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TrainableModel(EmbeddingModel):
    """A model that is trained on the pipeline's own texts."""

    @abstractmethod
    def train(self, texts: Iterable[str]) -> None:
        """Train on `texts`, read once, and keep the result. Raises SourceError if they are too few."""


def checked(vectors: Vectors, inputs: Sequence[str], space: Space) -> Vectors:
    """The reply itself, float32[n, d], if it can be believed.

    Raises ProviderError for a wrong shape, NaN or infinity, zero vectors and lost normalization.
    """
    faults = faulty_rows(vectors, inputs, space)
    if faults:
        first = min(faults)
        alike = sum(fault == faults[first] for fault in faults.values())
        raise ProviderError(
            f"{space} returned {faults[first]} for {alike} of {len(inputs)} texts, first for {inputs[first][:80]!r}. "
            "Nothing of this call was stored."
        )
    return vectors


def faulty_rows(vectors: Vectors, inputs: Sequence[str], space: Space) -> dict[int, str]:
    """What is wrong with which row of a reply float32[n, d]; empty if all can be believed.

    Raises ProviderError for a wrong shape.
    """
    wanted = (len(inputs), space.dimensions)
    if vectors.shape != wanted:
        raise ProviderError(
            f"{space} returned an array of shape {vectors.shape} for {wanted}. Nothing was stored."
        )
    finite = np.isfinite(vectors).all(axis=1)
    norms = np.linalg.norm(vectors, axis=1)
    faults = {
        "a vector that is not of unit length": space.normalized
        & (np.abs(norms - 1) > NORM_TOLERANCE),
        "a zero vector": norms == 0,
        "NaN or infinity": ~finite,
    }
    return {int(row): fault for fault, rows in faults.items() for row in np.flatnonzero(rows)}

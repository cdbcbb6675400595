"""What every provider does: text in, vectors out, and an honest account of what it is."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
class Reply:
    """What one request brought: vectors float32[n, d] in the order of its texts."""

    vectors: Vectors  # a row of NaN for a text that the service left out
    tokens: int | None = None  # as the service bills them; None if it does not say
    copies: Mapping[Space, Vectors] = field(
        default_factory=dict
    )  # the same texts in other spaces, for nothing more
    refused: Mapping[int, str] = field(default_factory=dict)  # rows of NaN that stay so, and why


@dataclass(frozen=True)
class BatchText:
    """What became of one text of a batch: a vector float32[d], or the service's words."""

    id: str
    vector: Vectors | None
    words: str = ""
    is_refused: bool = False  # for ever; else the text may be sent again


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


class Provider(Choice):
    """One embedding model. The options are the object; models load at first use, once per
    process."""

    @property
    @abstractmethod
    def space(self) -> Space:
        """The identity of the vectors this provider makes."""

    @property
    @abstractmethod
    def limits(self) -> Limits: ...

    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """The model's own tokenizer, for counting and cutting."""

    @property
    def tokenizer_digest(self) -> str:
        """What decides how texts are counted and cut, without loading the tokenizer where that is
        dear."""
        return digest(self.tokenizer().to_str().encode()).hex()

    def pinned(self, folder: Path) -> Self:
        """The same provider without a file of the user's that may change: `folder` keeps a copy.
        For releases."""
        return self

    @property
    def price(self) -> float | None:
        """USD per million tokens; 0 for what runs on this machine, None if nobody knows. Of direct
        requests, as queries and whatever is measured always are."""
        return 0.0

    @property
    def batch_price(self) -> float | None:
        """As `price`, of what goes through `batches`."""
        return self.price

    @property
    def learns(self) -> bool:
        """Whether it is made from the pipeline's own texts before it can embed."""
        return False

    def learn(self, texts: Iterable[str]) -> None:
        """Learn from `texts`, read once, and keep what was learnt; only of a provider that
        `learns`."""
        raise NotImplementedError(f"{self.kind} does not learn")

    def kept_in(self, folder: str) -> Self:
        """The same provider, with what it learns kept in `folder` (relative to the home folder)."""
        return self

    @property
    def computed_by(self) -> str:
        """Library, device and precision that the last vectors were computed in, for reports; empty
        for a service."""
        return ""

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        """As `embed`, with what else the reply says."""
        return Reply(self.embed(inputs, input_type))

    @property
    def answers_later(self) -> bool:
        """Whether documents go through `batches`, as the user asks for it."""
        return False

    def batches(self) -> BatchService:
        """The service's batch interface; only of a provider that `answers_later`."""
        raise NotImplementedError(f"{self.kind} has no batch interface")

    @abstractmethod
    def embed(self, inputs: Sequence[str], input_type: InputType) -> Vectors:
        """Vectors float32[len(inputs), space.dimensions] in the order of `inputs`.

        Raises ProviderError when the model cannot be had or does not answer.
        """


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

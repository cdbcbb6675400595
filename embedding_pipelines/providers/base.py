"""The contract of all providers: options in a file open a live model, which embeds texts."""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.once import forget
from embedding_pipelines.plugins import Choice
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from embedding_pipelines.images import Pixels, Resize
    from embedding_pipelines.inference.finetuning import Example, Finetuning

InputType = Literal["document", "query"]
NO_SECRETS: Mapping[str, str] = MappingProxyType({})

# float32 rounding over 4,096 dimensions stays below 1e-5, half precision below 1e-3.
NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Limits:
    """What one request to the provider may hold."""

    max_tokens: int  # per text, special tokens included
    request_tokens: int  # summed over the texts of one request
    request_texts: int
    concurrent_requests: int = 1  # `embed` is then called from that many threads
    request_bytes: int | None = None  # as `request_tokens`, in UTF-8; None: no such limit
    request_images: int = 0  # of one request; 0: the model takes texts alone


@dataclass(frozen=True)
class Response:
    """What one request returned: vectors float32[n, d] in the order of its texts."""

    vectors: Vectors  # a row of NaN for a text that the service left out
    tokens: int | None = None  # as the service bills them; None if it does not say
    # The same texts in other spaces, at no further cost.
    copies: Mapping[Space, Vectors] = field(default_factory=dict)
    rejected: Mapping[int, str] = field(default_factory=dict)  # rows that stay NaN, and why


@dataclass(frozen=True)
class BatchText:
    """The result for one text of a batch job: a vector float32[d], or the service's words."""

    id: str
    vector: Vectors | None
    words: str = ""
    is_rejected: bool = False  # for good; else the text may be sent again


@dataclass(frozen=True)
class BatchState:
    """The progress of a batch job. One that has ended may lack results for some of its texts."""

    has_ended: bool
    count: int  # of texts that it is done with
    tokens: int | None = None  # as billed, once the job has ended and if the service says so
    failure: str = ""  # the service's words if it accepted no text at all


class BatchService(ABC):
    """A service that answers within a day, at a lower price. Methods raise as a model's `embed`."""

    max_texts: int  # of one batch job
    max_bytes: int

    @abstractmethod
    def submit(self, texts: Mapping[str, str], input_type: InputType, tag: str) -> str:
        """Submit texts by id; returns the job's id. The service keeps `tag` with it, for `find`."""

    @abstractmethod
    def find(self, tag: str) -> str | None:
        """The id of the job that was submitted with `tag`; None if there is none."""

    @abstractmethod
    def state(self, batch: str) -> BatchState: ...

    @abstractmethod
    def results(self, batch: str) -> Iterator[BatchText]:
        """The results of a job that has ended; a text without one may be sent again."""


@dataclass(frozen=True)
class RateLimit:
    """Which requests share one pace, and what the account allows, if the options say so."""

    key: str  # a digest of address and API key
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


class ProviderOptions(Choice):
    """What a pipeline file says of its model: frozen, pure data. `open` makes the live model."""

    model_class: ClassVar["type[EmbeddingModel]"]

    def open(
        self, home: Path, folder: Path | None = None, secrets: Mapping[str, str] = NO_SECRETS
    ) -> "EmbeddingModel":
        """The live model, which loads files and makes requests at first use only.

        Relative paths start from `home`. A model that `trains` writes to `folder`. `secrets`, by
        name, come before the environment's variables.
        """
        return self.model_class(self, home, folder, secrets)

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
    def is_trusted(self) -> bool:
        """Whether opening the model runs no code but this package's, or code that the pipeline file
        vouches for."""
        return True

    def known_dimensions(self, home: Path) -> int | None:
        """The dimensions of a vector, if they can be known without opening the model."""
        size = getattr(self, "dimensions", None)
        return size if isinstance(size, int) else None

    def known_context(self, home: Path) -> int | None:
        """The tokens of a text that the model reads, a prompt's among them, if they can be known
        so."""
        size = getattr(self, "max_tokens", None)
        return size if isinstance(size, int) else None

    def known_special_tokens(self, home: Path) -> int:
        """How many tokens the model adds to each text, as far as they can be known so."""
        return 0

    def mistakes(self, home: Path) -> Iterator[str]:
        """What is wrong with what the options name, as far as it can be known so."""
        yield from ()

    def doubts(self, home: Path) -> Iterator[str]:
        """What may be wrong with it, and may be right."""
        yield from ()

    def missing_keys(self) -> Iterator[str]:
        """The keys that this process lacks."""
        yield from ()

    @property
    def takes_images(self) -> bool:
        """Whether the model embeds images, into the space of its texts."""
        return False

    @property
    def metadata_types(self) -> dict[str, str]:
        """The columns that the model gives the table, beside the vector."""
        return {}

    @property
    def trains(self) -> bool:
        """Whether the model is trained on the pipeline's own texts before it can embed."""
        return False

    @property
    def training(self) -> "ProviderOptions":
        """The options that decide what training comes to: a change of them trains another model."""
        return self


class EmbeddingModel(ABC):
    """A live model: client or engine, tokenizer, identity and limits. Any number of threads may
    use it; its opener closes it.

    `space`, `limits` and the tokenizer are read once, at first use. That may load a model's files
    or make a request, and raises ProviderError if the model is unavailable.
    """

    resources: ClassVar[tuple[str, ...]] = ()  # the `once` properties that `close` frees
    rate_limit: RateLimit | None = None  # None: requests have no limit, and none is repeated
    batch_service: BatchService | None = None
    # What it has to compute in where its options leave that to the machine; set before first use,
    # so that all machines of a cluster compute alike. It is no part of the space.
    fixed_precision: str | None = None
    # Of this machine's, how many it may keep busy, and what decodes its images; set before first
    # use. None: all.
    cores: int | None = None

    def __init__(
        self,
        options: ProviderOptions,
        home: Path,
        folder: Path | None = None,
        secrets: Mapping[str, str] = NO_SECRETS,
    ) -> None:
        self.options, self.home, self.folder, self._secrets = options, home, folder, secrets

    @property
    @abstractmethod
    def space(self) -> Space:
        """The identity of the vectors."""

    @property
    @abstractmethod
    def limits(self) -> Limits: ...

    @property
    def batch_tokens(self) -> int:
        """Tokens that keep the model busy, padding included: more take longer in proportion."""
        return self.limits.request_tokens

    @property
    @abstractmethod
    def tokenizer(self) -> "Tokenizer":
        """The model's own tokenizer, which counts and cuts."""

    @functools.cached_property
    def tokenizer_digest(self) -> str:
        """Identifies how texts are counted and cut."""
        return digest(self.tokenizer.to_str().encode()).hex()

    @property
    def computed_by(self) -> str:
        """Library, device and precision of the last vectors, for reports; empty for a service."""
        return ""

    @property
    def precision(self) -> str:
        """What it computes in on this machine, e.g. "bfloat16"; empty if nobody can say."""
        return ""

    @abstractmethod
    def embed(self, inputs: Sequence[str], input_type: InputType) -> Response:
        """One request: vectors float32[len(inputs), space.dimensions] in the order of `inputs`.

        Raises ProviderError if the model is unavailable; a service raises Busy, Unreachable,
        BadInput or TooLarge where that says what to do next.
        """

    @property
    def resize(self) -> "Resize":
        """How images become what `embed_images` takes, of a model whose options say that it takes
        images."""
        raise NotImplementedError

    def embed_images(self, pixels: "Pixels") -> Vectors:
        """One request: vectors float32[n, space.dimensions] of uint8[n, size, size, 3], made by
        `images.prepare` with `resize`. Raises as `embed`."""
        raise NotImplementedError

    def release_options(self, folder: Path) -> ProviderOptions:
        """The options that a release records. A file that the user may change is copied to `folder`
        first, and the options name the copy."""
        return self.options

    def close(self) -> None:
        """Free connections and memory; may be called twice."""
        forget(self, *self.resources)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class TrainableModel(EmbeddingModel):
    """A model that is trained on the pipeline's own texts."""

    @abstractmethod
    def train(self, texts: Iterable[str]) -> None:
        """Train on `texts`, read once, and save the result. Raises SourceError if they are too
        few."""


class FinetunedModel(EmbeddingModel):
    """A model that goes on learning from pairs of queries and texts, where its options say so.
    Until then it cuts and counts texts as its base does."""

    @property
    @abstractmethod
    def finetuning(self) -> "Finetuning":
        """How. Raises ConfigError for options that do not train."""

    @property
    @abstractmethod
    def base(self) -> EmbeddingModel:
        """The model that it was before, open."""

    @abstractmethod
    def finetune(
        self,
        name: str,
        examples: "Sequence[Example]",
        advance: Callable[[int, int], None],
    ) -> Path:
        """Train into a folder of this name, unless it is there; the folder. A training that was cut
        off goes on where it was. Raises ConfigError without the packages that it needs."""

    @abstractmethod
    def open_trained(self, folder: Path) -> EmbeddingModel:
        """The model in a folder that `finetune` has filled."""

    @abstractmethod
    def drop_trained(self) -> None:
        """Open what training has written at the next use."""


def check_reply(vectors: Vectors, inputs: Sequence[str], space: Space) -> Vectors:
    """The vectors of a reply, float32[n, d], once they are valid.

    Raises ProviderError for a wrong shape, NaN or infinity, zero vectors and lost normalization.
    """
    faults = faulty_rows(vectors, inputs, space)
    if faults:
        first = min(faults)
        count = sum(fault == faults[first] for fault in faults.values())
        raise ProviderError(
            f"{space.title} returned {faults[first]} for {count} of {len(inputs)} texts, first for "
            f"{inputs[first][:80]!r}. Nothing of this request was stored."
        )
    return vectors


def faulty_rows(vectors: Vectors, inputs: Sequence[str], space: Space) -> dict[int, str]:
    """What is wrong with each invalid row of a reply float32[n, d].

    Raises ProviderError for a wrong shape.
    """
    shape = (len(inputs), space.dimensions)
    if vectors.shape != shape:
        raise ProviderError(
            f"{space.title} returned an array of shape {vectors.shape}, not {shape}. Nothing was stored."
        )
    finite = np.isfinite(vectors).all(axis=1)
    norms = np.linalg.norm(vectors, axis=1)
    faults = {
        "a vector that is not of unit length": space.normalized
        & (np.abs(norms - 1) > NORM_TOLERANCE),
        "a zero vector": norms == 0,
        "no vector, NaN or infinity": ~finite,
    }
    return {int(row): fault for fault, rows in faults.items() for row in np.flatnonzero(rows)}

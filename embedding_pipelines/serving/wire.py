"""What server and client say to each other: bodies of requests and replies, and errors by status.

Every error's body is `{"error": sentence}`. A client may be newer than its server: what a reply says
more than before has a default.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import quote, unquote

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from embedding_pipelines.errors import EmbeddingPipelinesError

KEY_VARIABLE = "EMBEDDING_API_KEY"  # the environment variable that a key comes from
MAX_DOCUMENTS = 10_000  # of one request
MAX_HITS = 100_000  # of all queries of one request
MAX_IMAGE_BYTES = 20 << 20  # of one that is sent, as a file
MAX_IMAGES = 96  # of one request
MAX_LIKE = 100  # documents of one request that hits are to be like
MAX_TEXTS = 2_048  # of one request; as many as OpenAI takes
SPACE_HEADER = "X-Embedding-Space"  # the id of the space of a reply's vectors
RELEASE_HEADER = "X-Embedding-Release"  # the number of the release that answered
# For whom a request reads, where a pipeline has permissions: `ann, sales`, percent-encoded.
PRINCIPALS_HEADER = "X-Principals"
TIMEOUT_HEADER = "X-Request-Timeout"  # seconds after which the caller has no use for the answer
MAX_TIMEOUT_SECONDS = 3_600.0


def principals_header(principals: Iterable[str]) -> str:
    """PRINCIPALS_HEADER of some principals. Raises BadRequest for what are no names."""
    names = None if isinstance(principals, str) else list(principals)
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise BadRequest(f"principals is {principals!r}. Give a list of names: ['ann', 'sales'].")
    return ", ".join(quote(name, safe=" !#$&'()*+/:;=?@[]") for name in names)


def principals_in(header: str) -> tuple[str, ...]:
    """What PRINCIPALS_HEADER says."""
    return tuple(name for part in header.split(",") if (name := unquote(part.strip())))


def timeout_of(header: str) -> float | None:
    """The seconds that TIMEOUT_HEADER says; None for what it must not say."""
    try:
        seconds = float(header)
    except ValueError:
        return None
    return seconds if 0 < seconds <= MAX_TIMEOUT_SECONDS else None


class ServingError(EmbeddingPipelinesError):
    """An error of an HTTP API, by its status; `str(error)` is the sentence in its body."""

    status: ClassVar[int] = 500

    def __init__(self, text: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(text)
        self.retry_after_seconds = retry_after_seconds


class BadRequest(ServingError):
    """What was sent is wrong: correct it."""

    status = 400


class Unauthorized(ServingError):
    """No key, or a wrong one."""

    status = 401


class Forbidden(ServingError):
    """The key does not allow this."""

    status = 403


class NotFound(ServingError):
    """There is no such thing here."""

    status = 404


class Conflict(ServingError):
    """Something else that is under way stands against it: try again when it has ended."""

    status = 409


class ContentTooLarge(ServingError):
    """The body is larger than the server reads: send it in parts."""

    status = 413


class TooManyRequests(ServingError):
    """More than the server computes in time: send it again after `retry_after_seconds`."""

    status = 429


class Unavailable(ServingError):
    """The server, or a model behind it, cannot answer now."""

    status = 503


class ClientLeft(ServingError):
    """The connection is closed: nobody reads this. The status is nginx's."""

    status = 499

    def __init__(self) -> None:
        super().__init__("The client closed the connection.")


class DeadlineExceeded(ServingError):
    """The time that the caller allowed is over."""

    status = 504


class RunFailed(EmbeddingPipelinesError):
    """A piece of long work has ended without success; `str(error)` says why."""


ERRORS: Mapping[int, type[ServingError]] = MappingProxyType(
    {
        error.status: error
        for error in (
            *(BadRequest, Unauthorized, Forbidden, NotFound, Conflict, ContentTooLarge),
            *(TooManyRequests, Unavailable, DeadlineExceeded),
        )
    }
)


class Body(BaseModel):
    """Base of what a client sends: unknown keys are an error, so that none is ignored in silence."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorBody(BaseModel):
    """What every error says."""

    error: str = Field(description="What happened, where, and what to do.")


Text = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(Body):
    """As OpenAI's, with `truncate` and `input_type`."""

    model: str | None = Field(
        None,
        description="A pipeline's name, or its model's. May be left out where one model is served.",
    )
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] = Field(
        description="One text or several; no token ids."
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1, description="Fewer, where the model allows it.")
    user: str | None = None
    input_type: Literal["document", "query"] = "document"
    truncate: bool = Field(
        False, description="Embed the beginning of a text that is longer than the model reads."
    )


class EmbeddingsUsage(BaseModel):
    """Tokens, special ones included."""

    prompt_tokens: int
    total_tokens: int
    truncated_tokens: int = Field(0, description="Of texts that were cut: what was not read.")


class EmbeddingItem(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(
        description="Numbers, or with base64 the bytes of little-endian float32."
    )


class EmbeddingsResponse(BaseModel):
    """The vectors of all texts, in their order."""

    object: Literal["list"] = "list"
    data: list[EmbeddingItem]
    model: str
    usage: EmbeddingsUsage


class EmbedImage(Body):
    """An image as a data URL; addresses are not fetched."""

    url: str
    detail: str | None = None


class EmbedContent(Body):
    """A part of an input: text, or an image."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: EmbedImage | None = None


class EmbedInput(Body):
    """One input of several parts."""

    content: Annotated[list[EmbedContent], Field(min_length=1)]


EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]


class EmbedRequest(Body):
    """As Cohere's, version 2."""

    model: str | None = Field(None, description="A pipeline's name, or its model's.")
    input_type: Literal[
        "search_document", "search_query", "classification", "clustering", "image"
    ] = "search_document"
    texts: Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    images: Annotated[list[str], Field(min_length=1, max_length=MAX_IMAGES)] | None = Field(
        None, description="Data URLs, where the model takes images; addresses are not fetched."
    )
    inputs: Annotated[list[EmbedInput], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    output_dimension: int | None = Field(None, ge=1)
    embedding_types: list[EmbeddingType] | None = None
    truncate: Literal["NONE", "START", "END"] = Field(
        "NONE", description="END: embed the beginning of a text that is too long."
    )


class EmbedMeta(BaseModel):
    """What it took."""

    api_version: dict[str, str] = {"version": "2"}
    billed_units: dict[str, int]
    warnings: list[str] = []


class EmbedResponse(BaseModel):
    """The vectors of all texts, in each form that was asked for."""

    id: str
    response_type: Literal["embeddings_by_type"] = "embeddings_by_type"
    embeddings: dict[EmbeddingType, list[list[float]] | list[list[int]] | list[str]]
    texts: list[str]
    meta: EmbedMeta


class RerankDocument(Body):
    """A document as an object."""

    text: Text


class RerankRequest(Body):
    """As Cohere's and Jina's."""

    model: str | None = Field(None, description="The reranker, a pipeline, or its model.")
    query: Text
    documents: Annotated[list[Text | RerankDocument], Field(min_length=1, max_length=MAX_TEXTS)]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False
    truncate: bool = Field(
        False, description="Read the beginning of a document that is longer than the model reads."
    )


class RerankResult(BaseModel):
    """One document, by its place in the request."""

    index: int
    relevance_score: float
    document: RerankDocument | None = None


class RerankMeta(BaseModel):
    """How documents were scored, and what it took."""

    api_version: dict[str, str] = {"version": "2"}
    billed_units: dict[str, int]
    tokens: dict[str, int]
    scored_by: str = Field(description="The cross-encoder, or the model whose cosine it is.")


class RerankResponse(BaseModel):
    """The documents, the most relevant first."""

    id: str
    model: str
    results: list[RerankResult]
    meta: RerankMeta


class SearchRequest(Body):
    """One query, or many that are answered together."""

    pipeline: str | int | None = Field(
        None, description="Its name or number. May be left out where one pipeline is served."
    )
    query: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)] | None = None
    image: str | None = Field(
        None,
        description="In place of a query: an image as a data URL, where the model takes images.",
    )
    like: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_LIKE)] | None = Field(
        None,
        description="In place of a query: the id of a document, or of several. Other documents that "
        "are like it, or like all of them, are the hits.",
    )
    k: int = Field(10, ge=1, le=10_000, description="How many hits, at most.")
    filter: str | dict[str, Any] | None = Field(
        None,
        description="A condition, `price < 9 AND brand IN ('Acme')`, or columns with what they are.",
    )
    mode: Literal["vector", "text", "hybrid"] | None = Field(
        None, description="By vectors, by words, or by both; else as the pipeline says."
    )
    rerank: bool | None = Field(
        None,
        description="Whether a cross-encoder puts the hits in its order: the pipeline's "
        "`search.rerank`, or the server's; else as the pipeline says.",
    )
    truncate: bool = Field(
        False,
        description="Search with the beginning of a query that is longer than the model reads.",
    )


class SearchHit(BaseModel):
    """One chunk of a document."""

    score: float = Field(
        description="Cosine, BM25, by the ranks in both (see `mode`), or the reranker's."
    )
    chunk_id: str
    document_id: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """The hits of one query, best first."""

    pipeline: str
    release: int = Field(description="0: texts of a pipeline that has none yet, by words.")
    space_id: str
    query: str
    mode: Literal["vector", "text", "hybrid"] = Field(description="The path that it took.")
    hits: list[SearchHit]
    reranked_by: str = Field("", description="The cross-encoder whose scores the hits have.")
    milliseconds: float = Field(description="In the table, without embedding the query.")
    notes: list[str] = []
    receipt_id: str | None = Field(
        None, description="For feedback; null where nothing of this search is kept."
    )


class SearchAnswers(BaseModel):
    """An answer for each of many queries, in their order."""

    results: list[SearchAnswer]


class ModelItem(BaseModel):
    """One name that `model` may be."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "embedding-pipelines"


class ModelsResponse(BaseModel):
    """All models that are served."""

    object: Literal["list"] = "list"
    data: list[ModelItem]


class DocumentsRequest(Body):
    """Documents by the names of the source's columns: an id, a text, metadata."""

    documents: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_DOCUMENTS)] = (
        Field(examples=[[{"id": "A1", "text": "A red kettle."}]])
    )


class DocumentIds(Body):
    """Documents by their ids, as searches show them."""

    ids: Annotated[list[Text], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class DocumentsReceipt(BaseModel):
    """What is on the disk now, and seen by every search."""

    pipeline: str
    number: int = Field(description="Under which it stands in the pipeline's log.")
    documents: int = Field(description="That were put, deleted or withdrawn.")
    chunks: int
    embedded: int | None = Field(
        None, description="Texts that reached the model; all others it knew. None: nobody says."
    )
    unknown: list[str] = Field(description="Ids of which there was nothing to delete.")
    ignored: list[str] = Field(description="Fields that the pipeline has no column for.")


class Health(BaseModel):
    """Whether the process answers, or takes requests."""

    status: Literal["ok", "starting", "failing", "draining"]
    problems: dict[str, str] = Field({}, description="By pipeline: why it is not served.")


# Management: pipelines, their runs, their deployments.

RunKind = Literal[
    "run", "release", "rollback", "forget", "plan", "optimize", "compare", "deploy", "undeploy"
]
RunStatus = Literal["queued", "running", "succeeded", "failed"]
PipelineRef = Annotated[
    int | str, Field(description="A pipeline's number or name.", examples=[123, "products"])
]
KEY_OF_REQUEST = "Idempotency-Key"  # a UUID, by which a request that is sent again starts nothing


class PipelineReply(BaseModel):
    """How a pipeline stands. `status` is one of new, running, forgetting, active, failed, stopped,
    held back, broken and archived; `states` are the words that a list can be narrowed to."""

    model_config = ConfigDict(protected_namespaces=())

    id: int | None = Field(description="Its number, which stays. None where none could be kept.")
    pipeline: str
    status: str
    states: list[str] = Field([], description="Of active, building, failed, deployed, archived.")
    model: str | None = None
    schedule: str | None = None
    documents: int | None = None
    chunks: int | None = None
    embeddings: int | None = None
    rejected: int | None = None
    live_release: int | None = None
    live_rows: int | None = None
    released_at: str | None = None
    up_to_date: bool | None = Field(
        None, description="Whether the live release says what is there."
    )
    pushed_waiting: int | None = Field(
        None, description="Documents pushed or deleted that no release holds; searches see them."
    )
    freshness: str | None = None
    source: str | None = Field(None, description="What of it is not in the newest release.")
    source_is_released: bool | None = None
    last_step: str | None = None
    last_error: str | None = None
    held_back: str | None = None
    forced: str | None = None
    rolled_back: str | None = None
    output: str | None = Field(None, description="Which release was delivered, and where.")
    problem: str | None = Field(None, description="Of a broken file: what is wrong with it.")
    endpoints: list[str] = Field([], description="Where it is deployed.")


class PipelinesReply(BaseModel):
    """Pipelines, by name."""

    pipelines: list[PipelineReply]


class CreatedReply(PipelineReply):
    """A new pipeline, or the one that said the same before."""

    is_new: bool
    doubts: list[str] = Field([], description="What may be wrong with it.")


class ReleaseRequest(Body):
    """To release what checks hold back."""

    reason: str = Field(
        min_length=1, max_length=4_096, description="Why; the release keeps it.", pattern=r"\S"
    )


class RollbackRequest(Body):
    """Which release is to be live again."""

    to: int | None = Field(None, ge=1, description="Its number; else the one before the live one.")


class ForgetRequest(Body):
    """Documents to erase for good: by their ids, by the source files that they stand in, or both."""

    ids: list[Text] = Field([], max_length=MAX_DOCUMENTS, description="As searches show them.")
    sources: list[Text] = Field(
        [], max_length=MAX_DOCUMENTS, description="Source files, as `source.path` has them."
    )
    undo: bool = Field(
        False, description="Let them come back with the next run; nothing is restored."
    )


class OptimizeRequest(Body):
    """What `optimize` measures and chooses."""

    method: (
        Annotated[str, Field(max_length=32)]
        | Annotated[list[Annotated[str, Field(max_length=32)]], Field(min_length=1, max_length=8)]
    ) = Field(
        description="pca, truncate, float16, int8 (or quantization) or binary, or several in a "
        "chain; or auto.",
        examples=["pca"],
    )
    dimensions: int | None = Field(None, ge=1, le=2**20, description="That pca or truncate keep.")
    floor: float | None = Field(None, gt=0, le=1, description="The recall@10 to prove.")
    max_ms: float = Field(500.0, ge=0, description="Latency budget (median) for auto.")


class CompareRequest(Body):
    """Models to measure on a pipeline's own data, beside its own."""

    models: list[Annotated[str, Field(max_length=2_048)] | dict[str, JsonValue]] = Field(
        min_length=1,
        max_length=16,
        description="As a pipeline file has them: an alias, `provider:model`, or options.",
        examples=[["hashing", {"provider": "hf", "model": "org/name", "precision": "int8"}]],
    )
    documents: int = Field(2_000, ge=10, le=1_000_000, description="The size of the sample.")


class DeployRequest(Body):
    """A pipeline, and where its live release goes."""

    id: PipelineRef
    endpoint: str = Field(min_length=1, max_length=2_048, examples=["http://my-server:8080"])


class UndeployRequest(Body):
    """A pipeline, and the endpoint to remove it from."""

    id: PipelineRef
    endpoint: str | None = Field(
        None, min_length=1, max_length=2_048, description="May be left out where there is one."
    )


class RunReply(BaseModel):
    """A piece of long work: ask for it again until its status is succeeded or failed."""

    run_id: str
    pipeline: str
    kind: RunKind
    status: RunStatus
    began_at: datetime
    ended_at: datetime | None = None
    error: str | None = Field(None, description="Why it failed.")
    result: dict[str, JsonValue] = Field({}, description="What came of it.")


class RunsReply(BaseModel):
    """Runs, newest first."""

    runs: list[RunReply]


class DeletedReply(BaseModel):
    """What went with a pipeline."""

    pipeline: str
    releases: list[int]
    size_bytes: int


class PagePipeline(BaseModel):
    """A pipeline that can be searched."""

    name: str
    takes_images: bool = Field(False, description="Whether an image can be searched for.")


class MapResponse(BaseModel):
    """Places of chunks on a plane, like ones near one another: lists of one length each, over
    chunks."""

    release: int
    rows: int = Field(description="Chunks of the release; those with a place may be fewer.")
    chunks: list[str] = Field(description="Their ids.")
    documents: list[str] = Field(description="The ids of their documents.")
    texts: list[str] = Field(description="The beginnings of their texts.")
    x: list[float]
    y: list[float]


class FeedbackRequest(Body):
    """What somebody says of one result. Without a rating: it was clicked, which counts as 1."""

    receipt_id: str = Field(max_length=64, description="Of the search's reply.")
    document_id: str = Field(min_length=1, max_length=4_096)
    rating: int | None = Field(
        None, ge=0, le=3, description="0: not relevant at all, to 3: exactly what was looked for."
    )


class FeedbackReply(BaseModel):
    """It is on record."""

    receipt_id: str
    document_id: str

"""What server and client say to each other: bodies of requests and replies, and errors by status.

Every error's body is `{"error": sentence}`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.errors import EmbeddingPipelinesError

MAX_TEXTS = 2_048  # of one request; as many as OpenAI takes
SPACE_HEADER = "X-Embedding-Space"  # the id of the space of a reply's vectors
RELEASE_HEADER = "X-Embedding-Release"  # the number of the release that answered
TIMEOUT_HEADER = "X-Request-Timeout"  # seconds after which the caller has no use for the answer


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


class DeadlineExceeded(ServingError):
    """The time that the caller allowed is over."""

    status = 504


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


class EmbedContent(Body):
    """A part of an input; images are not served yet."""

    type: Literal["text", "image_url"]
    text: Text | None = None
    image_url: Any = None


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
    images: list[str] | None = None
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
    query: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    k: int = Field(10, ge=1, le=10_000, description="How many hits, at most.")
    filter: str | dict[str, Any] | None = Field(
        None,
        description="A condition, `price < 9 AND brand IN ('Acme')`, or columns with what they are.",
    )
    mode: Literal["vector", "text", "hybrid"] | None = Field(
        None, description="By vectors, by words, or by both; else as the pipeline says."
    )
    truncate: bool = Field(
        False,
        description="Search with the beginning of a query that is longer than the model reads.",
    )


class SearchHit(BaseModel):
    """One chunk of a document."""

    score: float = Field(description="Cosine, BM25, or by the ranks in both: see `mode`.")
    chunk_id: str
    document_id: str
    start: int
    end: int
    text: str
    metadata: dict[str, Any]


class SearchAnswer(BaseModel):
    """The hits of one query, best first."""

    pipeline: str
    release: int
    space_id: str
    query: str
    mode: Literal["vector", "text", "hybrid"] = Field(description="The path that it took.")
    hits: list[SearchHit]
    milliseconds: float = Field(description="In the table, without embedding the query.")
    notes: list[str] = []


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


class Health(BaseModel):
    """Whether the process answers, or takes requests."""

    status: Literal["ok", "starting", "draining"]
    problems: dict[str, str] = Field({}, description="By pipeline: why it is not served.")

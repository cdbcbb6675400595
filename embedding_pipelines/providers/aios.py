"""`aios`: a block of AIOS (OpenOS.AI) over gRPC. One request is one `infer` of a list of texts.

AIOS's blocks put their vectors in several places of a reply. The format states no number of
vectors, so they are counted and measured here.
"""

import functools
import itertools
import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from embedding_pipelines.errors import BadInput, Busy, ProviderError, TooLarge, Unreachable
from embedding_pipelines.extras import need
from embedding_pipelines.once import once
from embedding_pipelines.providers.base import InputType, Limits, Response
from embedding_pipelines.providers.common.http import Meaning, error_sentence
from embedding_pipelines.providers.common.prompts import PromptModel, PromptOptions
from embedding_pipelines.providers.common.replies import (
    order_by_index,
    read_numbers,
    value_at,
    vectors_at,
)
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space
from embedding_pipelines.variables import expand_all, expand_options, identity
from embedding_pipelines.vectors import Vectors, unit

REQUEST_TEXTS = 32
# A gRPC server accepts messages of 4 MB; JSON's escapes come on top of the texts.
REQUEST_BYTES = 1_000_000
# Where a block puts its vectors, alone or one inside another.
PLACES = ("embeddings", "embedding", "data", "reply")
CHANNEL = (
    ("grpc.enable_retries", 0),  # embedding/request.py retries
    # 32 vectors of 8,192 numbers in JSON exceed the usual 4 MB.
    ("grpc.max_receive_message_length", -1),
    # Short enough to reach a server that came back while the request is still repeated.
    ("grpc.max_reconnect_backoff_ms", 5_000),
)

METHOD = "/BlockInferenceService/infer"
# The messages of `BlockInferenceService`, as AIOS's adhoc-inference-server numbers them. The AIOS
# instance SDK numbers `AIOSPacket` otherwise (data 3, ts 4, …); servers for clients from outside
# use these numbers. By field its number and type; one that is not a scalar is a repeated message.
MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "FileInfo": {"metadata": (1, "string"), "file_data": (2, "bytes")},
    "BlockInferencePacket": {
        "block_id": (1, "string"),
        "session_id": (3, "string"),
        "seq_no": (4, "uint64"),
        "frame_ptr": (5, "bytes"),
        "data": (6, "string"),
        "query_parameters": (7, "string"),
        "ts": (8, "double"),
        "files": (9, "FileInfo"),
        "output_ptr": (10, "string"),
    },
    "AIOSPacket": {
        "session_id": (1, "string"),
        "seq_no": (2, "uint64"),
        "data": (4, "string"),
        "ts": (5, "double"),
        "output_ptr": (6, "string"),
        "files": (7, "FileInfo"),
    },
}


class AiosModel(PromptModel):
    """A channel to the server, which connects again when the connection breaks."""

    options: "Aios"
    resources = ("_channel",)
    meanings = (
        Meaning(["RESOURCE_EXHAUSTED"], TooLarge, words="larger than max"),
        Meaning(["RESOURCE_EXHAUSTED"], Busy),
        Meaning(["INVALID_ARGUMENT", "OUT_OF_RANGE"], BadInput),
        Meaning(["UNAUTHENTICATED", "PERMISSION_DENIED"], ProviderError, "Check {key}."),
        Meaning(
            ["NOT_FOUND", "FAILED_PRECONDITION"],
            ProviderError,
            "Check model ({model!r}) and selection_query.",
        ),
        Meaning(
            ["UNIMPLEMENTED"], ProviderError, "It has no BlockInferenceService: check grpc_url."
        ),
    )

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._session, self._numbers = uuid.uuid4().hex, itertools.count(1)

    @property
    def address(self) -> str:
        return self.options.grpc_url

    @functools.cached_property
    def space(self) -> Space:
        options = self.options
        choice = json.dumps([options.selection_query, options.gen_params], sort_keys=True)
        if expand_all(options.gen_params)[1]:  # of another value, other vectors
            choice = identity([options.selection_query, options.gen_params])
        return Space(
            provider=options.kind,
            model=options.model or options.grpc_url,
            revision=digest(choice.encode()).hex(),
            dimensions=options.dimensions,
            pooling="the block's own",
            prompts=self.prompts,
            max_tokens=options.max_tokens,
            normalized=options.normalize,
            dtype="float32",
        )

    @functools.cached_property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=self.text_tokens(self.options.max_tokens),
            request_tokens=REQUEST_TEXTS * self.options.max_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.options.concurrent_requests,
            request_bytes=REQUEST_BYTES,
        )

    def send(self, inputs: Sequence[str], input_type: InputType) -> Response:
        body = {
            "mode": "embedding",
            "gen_params": expand_options(self.options.gen_params),
            "texts": self.add_prompt(inputs, input_type),
        }
        vectors = self._read(self._infer(json.dumps(body, ensure_ascii=False)), len(inputs))
        return Response(unit(vectors) if self.options.normalize else vectors)

    @once
    def _channel(self) -> Any:
        grpc = need("grpc", "aios")
        if self.options.tls:
            credentials = grpc.ssl_channel_credentials()
            return grpc.secure_channel(self.address, credentials, options=CHANNEL)
        return grpc.insecure_channel(self.address, options=CHANNEL)

    @once
    def _messages(self) -> dict[str, Any]:
        return message_classes()

    def _infer(self, data: str) -> str:
        """`data` of the reply. Raises as `embed`."""
        options, query = self.options, self.options.selection_query
        packet = self._messages["BlockInferencePacket"](
            block_id=options.model,
            session_id=self._session,
            seq_no=next(self._numbers),
            data=data,
            query_parameters=json.dumps({"selection_query": query}) if query else "",
            ts=time.time(),
        )
        infer = self._channel.unary_unary(
            METHOD,
            request_serializer=type(packet).SerializeToString,
            response_deserializer=self._messages["AIOSPacket"].FromString,
        )
        metadata = tuple(self.bearer.items())
        try:
            return str(infer(packet, timeout=options.timeout_seconds, metadata=metadata).data)
        except need("grpc", "aios").RpcError as error:
            code, words = error.code().name, error.details() or "no details"
            fault = self.fault(code, words, dict(error.trailing_metadata() or ()))
            if code == "DEADLINE_EXCEEDED":
                limit = f"{options.timeout_seconds:g} s"
                fault = Unreachable(
                    f"{self.where} did not answer within {limit}. {self.quote(words)}"
                )
            # Without the cause, whose text repeats this one's with addresses of sockets.
            raise fault from None

    def _read(self, data: str, count: int) -> Vectors:
        """float32[count, dimensions] of a reply. Raises Unreachable; ProviderError for another d."""
        try:
            body = json.loads(data)
        except ValueError:
            raise Unreachable(f"{self.where} answered without JSON: {self.quote(data)}") from None
        error = value_at(body, "error") or value_at(body, "data", "error")
        if error:
            words = error_sentence(self.redact(json.dumps(error, ensure_ascii=False)))
            raise Unreachable(f"{self.where} answered with an error: {words}")
        rows = body
        while isinstance(rows, dict):
            rows = next((rows[place] for place in PLACES if rows.get(place) is not None), None)
        if isinstance(rows, list) and rows:
            if all(isinstance(row, dict) and "embedding" in row for row in rows):
                rows = order_by_index(self, rows, count)  # as OpenAI writes them
            elif isinstance(rows[0], float | int):
                rows = [rows]  # one vector, without a list around it
        vectors = vectors_at(self, body if rows is None else rows, (), count, read_numbers)
        if vectors.shape[1] != self.options.dimensions:
            raise ProviderError(
                f"{self.where} answered with vectors of {vectors.shape[1]} dimensions, not "
                f"{self.options.dimensions}. Set dimensions to {vectors.shape[1]}, or choose "
                "another block. Nothing of this request was stored."
            )
        return vectors


class Aios(PromptOptions):
    """One embedding block. The service does not describe its model, so the options do."""

    model_class = AiosModel

    kind: Literal["aios"] = "aios"
    grpc_url: str
    """host:port, or a target of gRPC's own naming, e.g. dns:///aios.example:50052."""

    model: str = ""
    """The block's id. Default: the block that `selection_query` picks, or the only one at
    `grpc_url`."""

    selection_query: dict[str, Any] | None = None
    """How AIOS picks the block, e.g. by region or tier; JSON in `query_parameters`."""

    gen_params: dict[str, Any] = Field(default_factory=dict)
    """The block's own parameters."""

    dimensions: int = Field(768, ge=1)
    max_tokens: int = Field(512, ge=16)
    normalize: bool = True
    """Bring vectors to unit length, whatever the block does."""

    tls: bool = False
    """Encrypt, and check the server's certificate against the public authorities."""

    timeout_seconds: float = Field(15.0, gt=0)

    @field_validator("grpc_url")
    @classmethod
    def _check_target(cls, url: str) -> str:
        if "@" in url:
            raise ValueError(
                "a target holds no password; name an environment variable with api_key_env"
            )
        host, _, port = url.rsplit("/", 1)[-1].rpartition(":")
        if url.startswith(("http:", "https:")) or not host or not port.isdigit():
            raise ValueError(
                f"{url!r} is not a target of gRPC; write e.g. localhost:50052 or "
                "dns:///aios.example:50052"
            )
        return url


def message_classes() -> dict[str, Any]:
    """The class of each message by name, e.g. `message_classes()["AIOSPacket"](data="{}")`.

    Built at run time, since generated code works with one version of protobuf only.
    """
    # In our own pool: the common one may hold other messages of these names.
    pool = need("google.protobuf.descriptor_pool", "aios").DescriptorPool()
    descriptors = need("google.protobuf.descriptor_pb2", "aios")
    factory = need("google.protobuf.message_factory", "aios")
    kinds = descriptors.FieldDescriptorProto
    file = descriptors.FileDescriptorProto(name="aios_service.proto", syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated = kind in MESSAGES
            scalar = "MESSAGE" if repeated else kind.upper()
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.Type.Value(f"TYPE_{scalar}"),
                type_name=f".{kind}" if repeated else None,
            )
    pool.Add(file)
    return {name: factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in MESSAGES}

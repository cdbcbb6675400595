"""`aios`: a block of AIOS (OpenOS.AI), asked by gRPC. One request is one `infer` of a list of
texts.

A reply's vectors are found wherever AIOS's blocks are known to put them; what is found is counted
and measured, since nothing in the format says how many there should be.
"""

from __future__ import annotations

import functools
import itertools
import json
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np
from pydantic import Field, field_validator

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.providers._aios_wire import METHOD, message
from embedding_pipelines.providers.base import InputType, Limits, Reply, Vectors
from embedding_pipelines.providers.common.http import (
    BadInput,
    Busy,
    Service,
    TooLarge,
    Unreachable,
    retry_after,
    spoken,
)
from embedding_pipelines.providers.common.replies import in_order, numbers, placed, unit
from embedding_pipelines.providers.common.served import prompts_by_input_type, room
from embedding_pipelines.schemas import digest
from embedding_pipelines.space import Space

if TYPE_CHECKING:
    import grpc  # type: ignore[import-untyped]

REQUEST_TEXTS = 32
REQUEST_BYTES = (
    1_000_000  # a gRPC server takes messages of 4 MB; JSON's escapes come on top of the texts
)
PLACES = (
    "embeddings",
    "embedding",
    "data",
    "reply",
)  # where a block puts its vectors, alone or one inside another
CHANNEL = (
    ("grpc.enable_retries", 0),  # repeating is decided elsewhere
    (
        "grpc.max_receive_message_length",
        -1,
    ),  # 32 vectors of 8,192 numbers in JSON exceed the usual 4 MB
    (
        "grpc.max_reconnect_backoff_ms",
        5_000,
    ),  # a server that came back is found while the request is still repeated
)

_SESSION, _NUMBERS = uuid.uuid4().hex, itertools.count(1)


class Aios(Service):
    """One embedding block. The service says nothing of its model, so the options do."""

    kind: Literal["aios"] = "aios"
    grpc_url: str
    """host:port, or a target of gRPC's own naming, e.g. dns:///aios.example:50052."""

    model: str = ""
    """The block's id. Empty: the block that `selection_query` finds, or the only one behind
    `grpc_url`."""

    selection_query: dict[str, Any] | None = None
    """How AIOS picks the block, e.g. by region or tier; sent as JSON in `query_parameters`."""

    gen_params: dict[str, Any] = Field(default_factory=dict)
    """What the block itself takes."""

    dimensions: int = Field(768, ge=1)
    max_tokens: int = Field(512, ge=16)
    normalize: bool = True
    """Vectors are brought to length 1 here, whatever the block does."""

    prompts: dict[InputType, str] | None = None
    """What stands before a text, by input type ("query", "document"). Default: what the model's
    family asks for."""

    tls: bool = False
    """Encrypt, and check the server's certificate against the public authorities."""

    timeout_seconds: float = Field(15.0, gt=0)

    @field_validator("grpc_url")
    @classmethod
    def _is_a_target(cls, url: str) -> str:
        if "@" in url:
            raise ValueError(
                "a target holds no password: name an environment variable with api_key_env"
            )
        host, _, port = url.rsplit("/", 1)[-1].rpartition(":")
        if url.startswith(("http:", "https:")) or not host or not port.isdigit():
            raise ValueError(
                f"{url!r} is no target of gRPC; write e.g. localhost:50052 or dns:///aios.example:50052"
            )
        return url

    @property
    def address(self) -> str:
        return self.grpc_url

    @property
    def space(self) -> Space:
        choice = json.dumps([self.selection_query, self.gen_params], sort_keys=True)
        return Space(
            provider=self.kind,
            model=self.model or self.grpc_url,
            revision=digest(choice.encode()).hex(),
            dimensions=self.dimensions,
            pooling="the block's own",
            prompts=self._prompts,
            max_tokens=self.max_tokens,
            normalized=self.normalize,
            dtype="float32",
        )

    @property
    def limits(self) -> Limits:
        return Limits(
            max_tokens=room(self, self.max_tokens, self._prompts),
            request_tokens=REQUEST_TEXTS * self.max_tokens,
            request_texts=REQUEST_TEXTS,
            concurrent_requests=self.concurrent_requests,
            request_bytes=REQUEST_BYTES,
        )

    def ask(self, inputs: Sequence[str], input_type: InputType) -> Reply:
        if not inputs:
            return Reply(np.empty((0, self.dimensions), np.float32))
        prompt = self._prompts.get(input_type, "")
        body = {
            "mode": "embedding",
            "gen_params": self.gen_params,
            "texts": [prompt + text for text in inputs],
        }
        vectors = self._believed(self._infer(json.dumps(body, ensure_ascii=False)), len(inputs))
        return Reply(unit(vectors) if self.normalize else vectors)

    def _infer(self, data: str) -> str:
        """`data` of the reply. Raises as `ask`."""
        grpc = need("grpc", "aios")
        packet = message("BlockInferencePacket")(
            block_id=self.model,
            session_id=_SESSION,
            seq_no=next(_NUMBERS),
            data=data,
            query_parameters=json.dumps({"selection_query": self.selection_query})
            if self.selection_query
            else "",
            ts=time.time(),
        )
        infer = _channel(self.grpc_url, self.tls).unary_unary(
            METHOD,
            request_serializer=type(packet).SerializeToString,
            response_deserializer=message("AIOSPacket").FromString,
        )
        try:
            return str(
                infer(
                    packet, timeout=self.timeout_seconds, metadata=tuple(self.bearer.items())
                ).data
            )
        except grpc.RpcError as error:
            raise self._fault(
                error
            ) from None  # its own text repeats this one's, with addresses of sockets

    def _believed(self, data: str, count: int) -> Vectors:
        """float32[count, dimensions] of a reply's JSON. Raises Unreachable; ProviderError for other
        dimensions."""
        said = f"aios at {self.grpc_url} answered"
        try:
            body = json.loads(data)
        except ValueError:
            raise Unreachable(f"{said} without JSON: {self.quoted(data)}") from None
        if _error_in(body):
            words = spoken(self.redacted(json.dumps(_error_in(body), ensure_ascii=False)))
            raise Unreachable(f"{said} with an error: {words}")
        rows = _vectors_in(body)
        if _has_entries(rows):
            rows = placed(self, rows, count)
        elif isinstance(rows, list) and rows and isinstance(rows[0], float | int):
            rows = [rows]  # one vector, without a list around it
        vectors = in_order(self, body if rows is None else rows, (), count, numbers)
        if vectors.shape[1] != self.dimensions:
            raise ProviderError(
                f"{said} with vectors of {vectors.shape[1]} dimensions for {self.dimensions}. Set dimensions to "
                f"{vectors.shape[1]}, or choose another block. Nothing of this call was stored."
            )
        return vectors

    def _fault(self, error: grpc.RpcError) -> ProviderError:
        """What a gRPC status means, in the service's own words and without the key."""
        code, words = error.code().name, self.quoted(error.details() or "no details")
        said = f"aios at {self.grpc_url} answered {code}: {words}"
        if code == "RESOURCE_EXHAUSTED":
            if "larger than max" in words:
                return TooLarge(said)
            trailing = {str(name): str(value) for name, value in error.trailing_metadata() or ()}
            return Busy(said, retry_after(trailing))
        if code in ("INVALID_ARGUMENT", "OUT_OF_RANGE"):
            return BadInput(said)
        if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            where = (
                f"the key in {self.api_key_env}"
                if self.api_key_env
                else "api_key_env, which is not set"
            )
            return ProviderError(f"{said} Check {where}.")
        if code in ("NOT_FOUND", "FAILED_PRECONDITION"):
            return ProviderError(f"{said} Check model ({self.model!r}) and selection_query.")
        if code == "UNIMPLEMENTED":
            return ProviderError(f"{said} There is no BlockInferenceService there: check grpc_url.")
        if code == "DEADLINE_EXCEEDED":
            said = (
                f"aios at {self.grpc_url} did not answer within {self.timeout_seconds:g} s. {words}"
            )
        return Unreachable(said)

    @property
    def _prompts(self) -> dict[str, str]:
        return prompts_by_input_type(self.model, self.prompts)


def _error_in(body: object) -> object:
    """What a block that failed puts in place of vectors, or beside them; None if it says nothing of
    the kind."""
    levels = [body, body.get("data")] if isinstance(body, dict) else []
    return next(
        (level["error"] for level in levels if isinstance(level, dict) and level.get("error")), None
    )


def _vectors_in(body: object) -> object:
    """The list that stands at one of PLACES, however deep; None if there is none."""
    while isinstance(body, dict):
        body = next((body[place] for place in PLACES if body.get(place) is not None), None)
    return body


def _has_entries(rows: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether these are objects with an `embedding` each, as OpenAI writes them."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, dict) and "embedding" in row for row in rows)
    )


@functools.cache
def _channel(target: str, tls: bool) -> grpc.Channel:
    """One per target and process; its connection is made again when it breaks."""
    grpc = need("grpc", "aios")
    if tls:
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=CHANNEL)
    return grpc.insecure_channel(target, options=CHANNEL)

"""Bundles that are deployed to this server: sent in parts, proven, then live without a gap."""

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, BackgroundTasks, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.uploads import MAX_PART_BYTES, Upload, Uploads
from embedding_pipelines.serving.wire import ContentTooLarge

router = APIRouter(
    prefix="/api/deployments", tags=["deployments"], dependencies=[Depends(allow("admin"))]
)
Id = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class DeploymentRequest(BaseModel):
    """A bundle that is about to be sent."""

    model_config = ConfigDict(extra="forbid")

    pipeline: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")]
    size_bytes: Annotated[int, Field(ge=1, le=1 << 40)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class DeploymentStatus(BaseModel):
    """How far a bundle has come."""

    id: str
    pipeline: str
    status: Literal["receiving", "proving", "live", "failed"]
    size_bytes: int
    received_bytes: int
    max_part_bytes: int = MAX_PART_BYTES
    error: str = ""
    release: int | None = None  # that it has become here
    least_cosine: float | None = None  # of its golden vectors


class Removal(BaseModel):
    """What was removed."""

    removed: list[str]


@router.post("", status_code=201)
def begin(body: DeploymentRequest, request: Request) -> DeploymentStatus:
    """Announce a bundle. Its content follows in parts, then `…/prove`."""
    return _status(_uploads(request).begin(body.pipeline, body.size_bytes, body.sha256))


@router.put("/{id}")
async def append(id: Id, request: Request, offset: Annotated[int, Query(ge=0)]) -> DeploymentStatus:
    """A part of the archive, as raw bytes, from an offset on."""
    data = bytearray()
    async for block in request.stream():
        data += block
        if len(data) > MAX_PART_BYTES:
            raise ContentTooLarge(f"A part has {MAX_PART_BYTES:,} bytes at most.")
    uploads = _uploads(request)
    return _status(await asyncio.to_thread(uploads.append, id, offset, bytes(data)))


@router.post("/{id}/prove", status_code=202)
def prove(id: Id, request: Request, tasks: BackgroundTasks) -> DeploymentStatus:
    """All is sent: compare it, and make it live. `GET` says how that ended; what is live stays live
    if it fails."""
    uploads = _uploads(request)
    upload = uploads.begin_proof(id)
    tasks.add_task(uploads.prove, id)
    return _status(upload)


@router.get("/{id}")
def status(id: Id, request: Request) -> DeploymentStatus:
    """How far a bundle has come."""
    return _status(_uploads(request).find(id))


@router.delete("/{pipeline}")
def take_back(
    pipeline: Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,62}$")], request: Request
) -> Removal:
    """Remove all that was deployed as this pipeline; what was live before is live again."""
    return Removal(removed=_uploads(request).take_back(pipeline))


def _uploads(request: Request) -> Uploads:
    """The server's, made at first use."""
    state = request.app.state
    if not hasattr(state, "uploads"):
        server: Server = state.server
        state.uploads = Uploads(server.warehouse, server.permissions)
    uploads: Uploads = state.uploads
    return uploads


def _status(upload: Upload) -> DeploymentStatus:
    values = {name: value for name, value in vars(upload).items() if name != "sha256"}
    return DeploymentStatus(**values)

"""What changes which release is live and what it holds, and the plan of a run: long work, as commands
of the same names do it."""

from fastapi import APIRouter, Depends, Request, Response

from embedding_pipelines.releases import live_release
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.routes.pipelines import (
    ABSENT,
    BUSY,
    PATH,
    Id,
    RequestKey,
    find,
    server_of,
    start,
)
from embedding_pipelines.serving.wire import (
    BadRequest,
    Conflict,
    ForgetRequest,
    ReleaseRequest,
    RollbackRequest,
    RunReply,
)
from embedding_pipelines.spec.load import pipeline_file

router = APIRouter(prefix=f"{PATH}/{{id}}", tags=["releases"], responses={**ABSENT, **BUSY})


@router.post("/release", status_code=202, dependencies=[Depends(allow("admin"))])
def release(
    id: Id, body: ReleaseRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Release what checks of its quality hold back, with a reason, which the release keeps. A broken
    table is never released."""
    name, number = find(request, id, with_file=True)
    options = {"reason": body.reason.strip()}
    return start(request, response, name, number, "release", options, key)


@router.post("/rollback", status_code=202, dependencies=[Depends(allow("write"))])
def rollback(
    id: Id, body: RollbackRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Make an earlier release live again; the run's result says which was live `before`. It waits for
    no run: what is released later is live then."""
    name, number = find(request, id)
    server = server_of(request)
    live = live_release(server.warehouse.pipeline(name))
    if live.spec.permissions is not None and pipeline_file(name, server.home) is None:
        raise Conflict(
            f"Pipeline {name!r} has no file any more, so its live release alone says who may see its "
            "documents, and another one may say less. Put the file back, or roll back where the "
            f"warehouse is: `embedding-pipelines rollback {name}`."
        )
    return start(request, response, name, number, "rollback", {"to": body.to}, key)


@router.post("/forget", status_code=202, dependencies=[Depends(allow("admin"))])
def forget(
    id: Id, body: ForgetRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Erase documents for good, with all releases but a new one, and leave them out of every later
    run. The run's result is the receipt of what was looked at; `left` names files that hold a text
    still."""
    if not body.ids and not body.sources:
        raise BadRequest("forget: name documents by ids, or source files by sources.")
    name, number = find(request, id, with_file=True)
    return start(request, response, name, number, "forget", body.model_dump(), key)


@router.post("/plan", status_code=202, dependencies=[Depends(allow("write"))])
def plan(id: Id, request: Request, response: Response, key: RequestKey = None) -> RunReply:
    """Reckon what a run would do, cost and take; the run's result has the figures. The source is read
    and cut in a copy, and nothing is embedded or changed."""
    name, number = find(request, id, with_file=True)
    return start(request, response, name, number, "plan", {}, key)

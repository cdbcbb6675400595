"""Whether the server lives, and whether it takes requests. Nobody needs a key for it."""

from fastapi import APIRouter, Request, Response
from fastapi.security import HTTPBearer

from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import Health, ServingError

router = APIRouter(tags=["health"])
bearer, reader = HTTPBearer(auto_error=False), allow("read")


@router.get("/health")
async def health() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/ready", responses={503: {"model": Health, "description": "Send requests elsewhere"}})
async def ready(request: Request, response: Response) -> Health:
    """Models are loaded, a live release can be searched if there is any, and the process is not about
    to end. What is wrong with a pipeline is said to whoever has a key."""
    server: Server = request.app.state.server
    if not server.is_ready:
        response.status_code = 503
        return Health(status="draining" if server.is_draining else "starting")
    await server.served()
    if is_failing := server.is_failing:
        server.load_again()
        response.status_code = 503
    problems = server.faults
    try:
        await reader(request, await bearer(request))
    except ServingError:
        problems = {}
    return Health(status="failing" if is_failing else "ok", problems=problems)

"""Whether the server lives, and whether it takes requests. Nobody needs a key for it."""

from fastapi import APIRouter, Request, Response

from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import Health

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/ready", responses={503: {"model": Health, "description": "Send requests elsewhere"}})
async def ready(request: Request, response: Response) -> Health:
    """Models are loaded, and the process is not about to end."""
    server: Server = request.app.state.server
    if server.is_ready:
        return Health(status="ok", problems=server.problems)
    response.status_code = 503
    return Health(status="draining" if server.is_draining else "starting")

"""What a monitor reads: the server's own work, and the figures of the live releases."""

from fastapi import APIRouter, Depends, Request, Response

from embedding_pipelines.prometheus import FAMILIES as PIPELINES
from embedding_pipelines.prometheus import Sample, exposition, of_release
from embedding_pipelines.serving.auth import allow
from embedding_pipelines.serving.metrics import FAMILIES, PREFIX
from embedding_pipelines.serving.server import Server

router = APIRouter(tags=["health"], dependencies=[Depends(allow("read"))])
TEXT = "text/plain; version=0.0.4; charset=utf-8"


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """For Prometheus: time in each stage by lane, batches, tokens, refusals, and live releases."""
    server: Server = request.app.state.server
    samples = list(server.metrics.samples())
    for model in server.workers:
        if model.lanes is None:
            continue
        for lane, tokens in model.lanes.queued_tokens.items():
            labels = {"model": model.title, "lane": lane}
            samples.append(Sample(f"{PREFIX}queued_tokens", labels, float(tokens)))
        rate = model.lanes.tokens_per_second
        if rate is not None:
            samples.append(Sample(f"{PREFIX}tokens_per_second", {"model": model.title}, rate))
    for served in (await server.served()).values():
        if served.release is not None:
            samples += of_release(served.name, served.release)
    return Response(exposition(samples, {**FAMILIES, **PIPELINES}), media_type=TEXT)

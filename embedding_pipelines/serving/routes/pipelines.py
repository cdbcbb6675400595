"""Management: pipelines, their long work, their deployments.

What takes long is answered with 202 and a run to ask for again; the work goes on in a process of
its own, as a Dagster run, whatever becomes of this server.
"""

import json
import re
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from pydantic import JsonValue

from embedding_pipelines.errors import ConfigError, ExistsError, PermissionsError
from embedding_pipelines.serving.auth import allow, has_own_key, reads_sentences
from embedding_pipelines.serving.runs import Runs
from embedding_pipelines.serving.server import Server
from embedding_pipelines.serving.wire import (
    KEY_OF_REQUEST,
    KEY_VARIABLE,
    BadRequest,
    CompareRequest,
    Conflict,
    CreatedReply,
    DeletedReply,
    DeployRequest,
    NotFound,
    OptimizeRequest,
    PipelineReply,
    PipelinesReply,
    RunKind,
    RunReply,
    RunsReply,
    UndeployRequest,
)
from embedding_pipelines.spec.ids import pipeline_ids
from embedding_pipelines.spec.load import pipeline_file
from embedding_pipelines.spec.pipeline import NAME, PipelineSpec
from embedding_pipelines.status import check_filter, list_status

PATH = "/api/embedding-pipelines"
NUMBER = re.compile(r"[0-9]{1,9}")
# Of a status: what quotes documents, whose pipelines may have permissions.
SENTENCES = ("freshness", "source", "last_error", "held_back", "forced", "problem")
AUTO, AUTO_FLOOR = "auto", 0.99
ABSENT: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such pipeline or run"}}
BUSY: dict[int | str, dict[str, Any]] = {
    409: {"description": "Something else is at work, or has the name"}
}

router = APIRouter(prefix=PATH, tags=["pipelines"])

Id = Annotated[str, PathParameter(description="A pipeline's number or name.", max_length=64)]
RequestKey = Annotated[
    uuid.UUID | None,
    Header(alias=KEY_OF_REQUEST, description="A UUID: with the same, nothing is started twice."),
]


@router.get("", dependencies=[Depends(allow("read"))])
def list_pipelines(
    request: Request,
    filter: Annotated[
        str, Query(description="active, building, failed, deployed, archived or all.")
    ] = "all",
) -> PipelinesReply:
    """All pipelines, broken ones included, or those of which a word holds."""
    word = check_filter(filter)
    replies = _rows(request)
    return PipelinesReply(
        pipelines=[reply for reply in replies if word == "all" or word in reply.states]
    )


@router.post(
    "",
    status_code=201,
    responses={
        200: {"model": CreatedReply, "description": "There is one that says the same"},
        **BUSY,
    },
    dependencies=[Depends(allow("admin"))],
)
def create(
    config: Annotated[
        dict[str, JsonValue],
        Body(
            description="What a pipeline file says; `name` is optional.",
            examples=[{"model": "bert", "data_path": "data.csv"}],
        ),
    ],
    request: Request,
    response: Response,
) -> CreatedReply:
    """Write a pipeline file. Nothing is embedded before it runs.

    Files that it names are below the server's home folder.
    """
    from embedding_pipelines.spec.create import create_from, paths_that_leave
    from embedding_pipelines.validate import check_new

    home = _home(request)
    if outside := list(paths_that_leave(config)):
        raise BadRequest(
            f"Invalid config: {'; '.join(outside)} is outside the server's home folder. Name a path "
            "below it, or let whoever runs the server write the pipeline file."
        )
    if KEY_VARIABLE in json.dumps(config):
        raise BadRequest(
            f"Invalid config: it names ${KEY_VARIABLE}, the key of this server, which goes to nobody. "
            "Name the variable of the service's own key."
        )
    doubts, permissions = list[str](), server_of(request).permissions

    def check(spec: PipelineSpec) -> None:
        permissions.check_model(spec.model)
        permissions.check_engine(spec.engine)
        permissions.check_output(spec.output)
        doubts.extend(check_new(spec, server_of(request).warehouse))

    try:
        permissions.check_texts(config)
        created = create_from(home, config, check)
    except ExistsError as error:
        raise Conflict(_without(home, str(error))) from None
    except ConfigError as error:
        raise BadRequest(_without(home, f"Invalid config: {error}")) from None
    response.status_code = 201 if created.is_new else 200
    name = created.spec.name
    (row,) = _rows(request, name)
    response.headers["Location"] = f"{PATH}/{row.id or name}"
    return CreatedReply(**row.model_dump(), is_new=created.is_new, doubts=doubts)


@router.post(
    "/deploy",
    status_code=202,
    responses={**ABSENT, **BUSY},
    dependencies=[Depends(allow("admin"))],
)
def deploy(
    body: DeployRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Give the live release of a pipeline to an endpoint: another server, SageMaker, Kubernetes.

    A server is sent the key of this one, $EMBEDDING_API_KEY, if that came with the request: no
    other key can have it sent anywhere.
    """
    from embedding_pipelines.releases import live_release
    from embedding_pipelines.serving.targets.deploy import target_of

    name, number = find(request, str(body.id))
    live_release(server_of(request).warehouse.pipeline(name))
    target_of(body.endpoint)
    options = {"endpoint": body.endpoint, "sends_key": has_own_key(request)}
    return start(request, response, name, number, "deploy", options, key)


@router.post(
    "/undeploy",
    status_code=202,
    responses={**ABSENT, **BUSY},
    dependencies=[Depends(allow("admin"))],
)
def undeploy(
    body: UndeployRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Remove all that `deploy` made at an endpoint; the run's result says what."""
    from embedding_pipelines.deployments import read_deployments

    name, number = find(request, str(body.id))
    places = [
        each.endpoint for each in read_deployments(server_of(request).warehouse.pipeline(name))
    ]
    if not places:
        raise BadRequest(f"Pipeline {name!r} is deployed to no endpoint: nothing is to be removed.")
    if body.endpoint not in (None, *places) or (len(places) != 1 and body.endpoint is None):
        raise BadRequest(
            f"Pipeline {name!r} is deployed to {', '.join(places)}. Name one of these."
        )
    options = {"endpoint": body.endpoint, "sends_key": has_own_key(request)}
    return start(request, response, name, number, "undeploy", options, key)


@router.get("/runs/{run_id}", responses=ABSENT, dependencies=[Depends(allow("read"))])
def get_run(run_id: Annotated[str, PathParameter(max_length=64)], request: Request) -> RunReply:
    """How a piece of long work stands."""
    return _reply(request, server_of(request).runs.get(run_id))


@router.get("/{id}", responses=ABSENT, dependencies=[Depends(allow("read"))])
def get_pipeline(id: Id, request: Request) -> PipelineReply:
    """How one pipeline stands."""
    name, _ = find(request, id)
    for row in _rows(request, name):
        return row
    raise _absent(id)


@router.get("/{id}/runs", responses=ABSENT, dependencies=[Depends(allow("read"))])
def list_runs(
    id: Id, request: Request, limit: Annotated[int, Query(ge=1, le=1000)] = 20
) -> RunsReply:
    """The newest runs of a pipeline, whoever started them: also those of schedules, the command line
    and Dagster's interface."""
    name, _ = find(request, id)
    runs = server_of(request).runs.of(name, limit)
    return RunsReply(runs=[_reply(request, run) for run in runs])


@router.post(
    "/{id}/run",
    status_code=202,
    responses={**ABSENT, **BUSY},
    dependencies=[Depends(allow("write"))],
)
def run(id: Id, request: Request, response: Response, key: RequestKey = None) -> RunReply:
    """Bring a pipeline up to date: read what changed, embed what is new, check, release."""
    name, number = find(request, id, with_file=True)
    return start(request, response, name, number, "run", {}, key)


@router.post(
    "/{id}/optimize",
    status_code=202,
    responses={**ABSENT, **BUSY},
    dependencies=[Depends(allow("write"))],
)
def optimize(
    id: Id, body: OptimizeRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Make vectors smaller, at a measured cost; a pipeline that never ran is run first.

    A compression that keeps the floor goes into the pipeline file, and the pipeline runs; else
    nothing changes.
    """
    from embedding_pipelines.optimize.optimize import Goal

    name, number = find(request, id, with_file=True)
    methods = (body.method,) if isinstance(body.method, str) else tuple(body.method)
    floor = AUTO_FLOOR if body.floor is None and methods == (AUTO,) else body.floor
    goal = Goal(methods, body.dimensions, floor, body.max_ms)
    return start(request, response, name, number, "optimize", asdict(goal), key)


@router.post(
    "/{id}/compare",
    status_code=202,
    responses={**ABSENT, **BUSY},
    dependencies=[Depends(allow("write"))],
)
def compare(
    id: Id, body: CompareRequest, request: Request, response: Response, key: RequestKey = None
) -> RunReply:
    """Measure models on a sample of a pipeline's own data, beside its own; the run's result has the
    figures. Nothing of the pipeline changes; a service is sent the sample."""
    from embedding_pipelines.spec.create import paths_that_leave
    from embedding_pipelines.spec.load import parse_model

    name, number = find(request, id, with_file=True)
    permissions = server_of(request).permissions
    models = [each if isinstance(each, str) else json.dumps(each) for each in body.models]
    if KEY_VARIABLE in "".join(models):
        raise BadRequest(
            f"models: one names ${KEY_VARIABLE}, this server's key, which goes to nobody."
        )
    try:
        permissions.check_texts(models)
        for given in map(parse_model, models):
            permissions.check_model(given)
            if outside := list(paths_that_leave({"model": given.model_dump(mode="json")})):
                raise BadRequest(
                    f"{'; '.join(outside)} is outside the server's home folder. Name a path below it."
                )
    except ConfigError as error:
        raise BadRequest(_without(_home(request), str(error))) from None
    options = {"models": models, "documents": body.documents}
    return start(request, response, name, number, "compare", options, key)


@router.delete("/{id}", responses={**ABSENT, **BUSY}, dependencies=[Depends(allow("admin"))])
def delete(id: Id, request: Request, keep_file: bool = False) -> DeletedReply:
    """Delete a pipeline with all that it has produced; its source is not touched."""
    from embedding_pipelines.delete import delete_pipeline
    from embedding_pipelines.deployments import read_deployments

    name, _ = find(request, id)
    server = server_of(request)
    with server.runs.holding_all(name):
        places = [each.endpoint for each in read_deployments(server.warehouse.pipeline(name))]
        if places:
            raise Conflict(
                f"Pipeline {name!r} is deployed to {', '.join(places)}. Undeploy it first."
            )
        deletion = delete_pipeline(server.home, name, keep_file)
    return DeletedReply(pipeline=name, releases=deletion.releases, size_bytes=deletion.size_bytes)


def start(
    request: Request,
    response: Response,
    name: str,
    number: int | None,
    kind: RunKind,
    options: dict[str, Any],
    key: uuid.UUID | None,
) -> RunReply:
    runs: Runs = server_of(request).runs
    given = (name, number, kind, options, str(key) if key else None)
    reply = _reply(request, runs.start(*given))
    response.headers["Location"] = f"{PATH}/runs/{reply.run_id}"
    return reply


def _rows(request: Request, *names: str) -> list[PipelineReply]:
    """How pipelines stand, all without names. Work that has only begun counts."""
    server, rows = server_of(request), list[PipelineReply]()
    for row in list_status(server.home, names or None):
        work = server.runs.at_work(row["pipeline"])
        if work == "forget":  # it builds nothing from the source
            row = row | {"status": "forgetting"}
        elif work is not None and "building" not in row["states"]:
            row = row | {"status": "running", "states": [*row["states"], "building"]}
        if _quotes_documents(request, row["pipeline"]):
            row = {name: value for name, value in row.items() if name not in SENTENCES}
        rows.append(PipelineReply.model_validate(row))
    return rows


def _reply(request: Request, run: RunReply) -> RunReply:
    """A run as a request may read it."""
    if not _quotes_documents(request, run.pipeline):
        return run.model_copy(update={"error": run.error and _without(_home(request), run.error)})
    error = run.error and "Whoever runs the server sees why."
    return run.model_copy(update={"error": error, "result": {}})


def _quotes_documents(request: Request, pipeline: str) -> bool:
    """Whether sentences about a pipeline may quote documents that are not for whoever asks."""
    if reads_sentences(request):
        return False
    server = server_of(request)
    try:
        return server.access(pipeline).permissions() is not None
    except PermissionsError:
        return True


def find(request: Request, id: str, with_file: bool = False) -> tuple[str, int | None]:
    """The name and the number of a pipeline that there is. Raises NotFound.

    A name is one that a pipeline can have, so that it is a folder's name and never a path.
    """
    server = server_of(request)
    ids = pipeline_ids(server.home)
    if NUMBER.fullmatch(id):
        name = next((name for name, number in ids.items() if number == int(id)), "")
    else:
        name = id if NAME.fullmatch(id) else ""
    has_file = pipeline_file(name, server.home) is not None
    is_there = has_file or (
        not with_file and name and server.warehouse.pipeline(name).releases.exists()
    )
    if not name or not is_there:
        raise _absent(id)
    return name, ids.get(name)


def _absent(id: str) -> NotFound:
    return NotFound(f"There is no pipeline {id[:64]!r}. GET {PATH} lists those that there are.")


def server_of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


def _home(request: Request) -> Path:
    return server_of(request).home


def _without(home: Path, text: str) -> str:
    """A sentence without where the home folder is, which is nobody's business far away."""
    return text.replace(f"{home}/", "")

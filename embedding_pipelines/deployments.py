"""Deployments of a pipeline's releases, on record beside it: where they went, and what `undeploy`
needs to take them back. They hold no secret.

The record is of this machine: one that only another machine knew would cost money unseen.
"""

from datetime import datetime

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from embedding_pipelines.errors import StoreError
from embedding_pipelines.files import delete, read_json, write_json
from embedding_pipelines.storage.warehouse import PipelineFolder


class Deployment(BaseModel):
    """One release at one endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str  # as it was given
    target: str  # the kind of endpoint: "server", "sagemaker", "kubernetes"
    pipeline: str
    release: int  # its number in this home
    space_id: str
    deployed_at: datetime
    is_complete: bool = False  # False: it is under way, or ended before it was whole
    resources: dict[str, JsonValue] = {}
    """Names and addresses of what was created, by kind: what `undeploy` removes."""


def read_deployments(folder: PipelineFolder) -> list[Deployment]:
    """All that are on record, oldest first. Raises StoreError if the record is damaged."""
    record = read_json(folder.deployments)
    try:
        return [Deployment.model_validate(entry) for entry in (record or {}).get("deployments", [])]
    except ValidationError as error:
        raise StoreError(
            f"{folder.deployments} cannot be read by this version ({error.error_count()} fields "
            "differ). Take the deployments back with the version that made them."
        ) from error


def write_deployment(folder: PipelineFolder, deployment: Deployment) -> None:
    """Put a deployment on record, in place of the one to the same endpoint."""
    others = _others(folder, deployment.endpoint)
    _write(folder, [*others, deployment])


def remove_deployment(folder: PipelineFolder, endpoint: str) -> None:
    """Take the deployment to an endpoint from the record."""
    _write(folder, _others(folder, endpoint))


def _others(folder: PipelineFolder, endpoint: str) -> list[Deployment]:
    return [entry for entry in read_deployments(folder) if entry.endpoint != endpoint]


def _write(folder: PipelineFolder, deployments: list[Deployment]) -> None:
    if deployments:
        entries = [entry.model_dump(mode="json") for entry in deployments]
        write_json(folder.deployments, {"deployments": entries})
    else:
        delete(folder.deployments)

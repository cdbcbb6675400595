"""`deploy` and `undeploy`: from a pipeline's name and an endpoint to what stands there."""

from datetime import UTC, datetime

from embedding_pipelines.deployments import (
    Deployment,
    read_deployments,
    remove_deployment,
    write_deployment,
)
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.files import temporary_folder
from embedding_pipelines.plugins import objects
from embedding_pipelines.progress import Progress, Silent
from embedding_pipelines.releases import live_release
from embedding_pipelines.serving.bundle import write_bundle
from embedding_pipelines.serving.targets.base import Order, Resources, Target
from embedding_pipelines.storage.warehouse import Warehouse


def deploy(
    warehouse: Warehouse,
    pipeline: str,
    endpoint: str,
    *,
    key: str = "",
    progress: Progress | None = None,
) -> Deployment:
    """Deploy the live release of a pipeline, by its name, to an endpoint; what is on record of it.

    It takes from seconds (a server) to minutes (SageMaker). `key` is sent to a server. Deploying
    again to the same endpoint replaces what is there, without a gap. Raises ConfigError for an
    endpoint that no target takes, ReleaseError without a release, TargetError if the endpoint
    refuses or fails: what was live there then still is.
    """
    target, folder, progress = (
        target_of(endpoint),
        warehouse.pipeline(pipeline),
        progress or Silent(),
    )
    release = live_release(folder)
    before = next((e for e in read_deployments(folder) if e.endpoint == endpoint), None)
    deployment = Deployment(
        endpoint=endpoint,
        target=target.name,
        pipeline=pipeline,
        release=release.number,
        space_id=release.space.id,
        deployed_at=datetime.now(UTC),
        resources=dict(before.resources) if before else {},
    )

    def keep(resources: Resources | None) -> None:
        if resources is not None:
            write_deployment(folder, deployment.model_copy(update={"resources": dict(resources)}))
        elif before is not None:
            write_deployment(folder, before)
        else:
            remove_deployment(folder, endpoint)

    with temporary_folder(warehouse.root, ".deploy-") as draft:
        bundle = draft / f"{pipeline}.tar"
        progress.note(f"sealing release {release.number} of {pipeline}")
        write_bundle(warehouse, pipeline, bundle, with_shards=False, progress=progress)
        order = Order(warehouse.home, pipeline, bundle, endpoint, key, before, progress, keep)
        resources = target.deploy(order)
    whole = deployment.model_copy(update={"resources": dict(resources), "is_complete": True})
    write_deployment(folder, whole)
    return whole


def undeploy(
    warehouse: Warehouse,
    pipeline: str,
    endpoint: str | None = None,
    *,
    key: str = "",
) -> list[str]:
    """Remove all that `deploy` created for a pipeline at an endpoint, None: the only one; a line
    for each thing that was removed.

    Raises ConfigError if nothing is on record for it, TargetError if the endpoint refuses: it then
    stays on record.
    """
    folder = warehouse.pipeline(pipeline)
    deployments = read_deployments(folder)
    if not deployments:
        raise ConfigError(
            f"Pipeline {pipeline!r} is deployed to nowhere, so that there is nothing to remove."
        )
    matches = [entry for entry in deployments if endpoint in (None, entry.endpoint)]
    if len(matches) != 1:
        places = ", ".join(entry.endpoint for entry in deployments)
        where = (
            f"not deployed to {endpoint}, but to {places}" if endpoint else f"deployed to {places}"
        )
        raise ConfigError(f"Pipeline {pipeline!r} is {where}. Name one with --endpoint.")
    (deployment,) = matches
    target = targets().get(deployment.target)
    if target is None:
        raise ConfigError(
            f"Pipeline {pipeline!r}: this version has no target {deployment.target!r}. Undeploy "
            "with the version that deployed it."
        )
    removed = target.undeploy(warehouse.home, deployment, key)
    remove_deployment(folder, deployment.endpoint)
    return removed


def targets() -> dict[str, Target]:
    """All targets, by name."""
    return objects("serving.targets", Target)  # type: ignore[type-abstract]


def target_of(endpoint: str) -> Target:
    """The target that takes an endpoint. Raises ConfigError if none does."""
    for target in targets().values():
        if target.accepts(endpoint):
            return target
    examples = ", ".join(target.example for target in targets().values())
    raise ConfigError(f"{endpoint!r} is no endpoint. Write one as {examples}.")

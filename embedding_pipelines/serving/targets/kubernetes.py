"""Kubernetes: the bundle goes to a bucket, and pods take it up before they serve.

What is applied: a secret with the pipeline's file, which pods mount as their configuration, a
deployment, a service, an autoscaler and a disruption budget. The pods' keys and credentials come
from a secret of the user's, which is named and never read here.
"""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedding_pipelines.deployments import Deployment
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.objects import open_bucket
from embedding_pipelines.serving.targets.base import Order, Resources, Target
from embedding_pipelines.serving.targets.settings import KubernetesSettings, kubernetes_settings
from embedding_pipelines.spec.load import pipeline_file

SCHEME = "kubernetes"
LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,52}[a-z0-9])?")  # with room for the endings below
HOME, USER = "/srv/home", 10_001  # as deploy/Dockerfile has them
PORT = 8080
ROLLOUT_SECONDS = 1_200
COMMAND_SECONDS = 120  # of any other command
GRACE_SECONDS = 30
MAX_SECRET_BYTES = 1 << 20
KINDS = ("HorizontalPodAutoscaler", "PodDisruptionBudget", "Service", "Deployment", "Secret")

Manifest = dict[str, Any]


class KubernetesTarget(Target):
    name = "kubernetes"
    example = "kubernetes://NAMESPACE/NAME"

    def accepts(self, endpoint: str) -> bool:
        return endpoint.startswith(f"{SCHEME}://")

    def deploy(self, order: Order) -> Resources:
        settings = kubernetes_settings(order.home)
        namespace, name = _place(order.endpoint, order.pipeline)
        kubectl = _kubectl(namespace)
        with order.bundle.open("rb") as archive:
            digest = hashlib.file_digest(archive, "sha256").hexdigest()
        uri = f"{settings.bucket.rstrip('/')}/{name}-{digest[:16]}.tar"
        file = _file_of(order.home, order.pipeline)
        # Of each release its own, so that pods of the one before go on with theirs.
        mark = hashlib.sha256(f"{uri}\n{file}".encode()).hexdigest()[:8]
        new = Installation(namespace, name, order.pipeline, uri, f"{name}-{mark}")
        old = Installation(**order.before.resources["place"]) if order.before else None  # type: ignore
        manifests = manifests_of(new, settings, file)
        resources: dict[str, Any] = {
            "place": vars(new),
            "objects": [f"{each['kind']}/{each['metadata']['name']}" for each in manifests],
            "bundles": [uri],
        }
        before = dict(order.before.resources) if order.before else {}
        created = {key: _without(resources, before, key) for key in ("objects", "bundles")}
        replaced = {key: _without(before, resources, key) for key in ("objects", "bundles")}
        order.keep(resources | {key: resources[key] + replaced[key] for key in replaced})
        try:
            order.progress.note(f"uploading the bundle to {uri}")
            bucket, key = open_bucket(uri)
            bucket.create(key, order.bundle)
            kubectl("apply", "-f", "-", text=_as_text(manifests))
            order.progress.note(f"waiting for the pods of {name}")
            self._wait(kubectl, name)
        except BaseException:
            if old is not None:  # its secret and its bundle are still there
                kubectl("apply", "-f", "-", text=_as_text(manifests_of(old, settings, file)[1:]))
            _remove(kubectl, created["objects"])
            _remove_bundles(created["bundles"])
            order.keep(None)
            raise
        _remove(kubectl, replaced["objects"])
        _remove_bundles(replaced["bundles"])
        return resources

    def undeploy(self, home: Path, deployment: Deployment, key: str) -> list[str]:
        resources = dict(deployment.resources)
        place: Any = resources["place"]
        removed = _remove(_kubectl(place["namespace"]), _list(resources, "objects"))
        return removed + _remove_bundles(_list(resources, "bundles"))

    def _wait(self, kubectl: "_Kubectl", name: str) -> None:
        limit = f"--timeout={ROLLOUT_SECONDS}s"
        try:
            kubectl("rollout", "status", f"deployment/{name}", limit, seconds=ROLLOUT_SECONDS + 60)
        except TargetError as error:
            raise TargetError(
                f"The pods of {name!r} did not become ready, so what served before is applied again. "
                f"{error} `kubectl -n {kubectl.namespace} logs deployment/{name} --all-containers` "
                "says why."
            ) from None


@dataclass(frozen=True)
class Installation:
    """What tells one deployment from another."""

    namespace: str
    name: str
    pipeline: str
    bundle: str  # its address in a bucket
    configuration: str  # the name of the secret with the pipeline's file


def manifests_of(
    place: Installation, settings: KubernetesSettings, file: tuple[str, str] | None
) -> list[Manifest]:
    """What is applied, the secret first. `file` is the name and the text of the pipeline's file,
    None if it has lost it."""
    name = place.name
    labels = {"app.kubernetes.io/name": "embedding-pipelines", "app.kubernetes.io/instance": name}

    def manifest(api: str, kind: str, own: str = name, **more: Any) -> Manifest:
        metadata = {"name": own, "namespace": place.namespace, "labels": labels}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}

    return [
        manifest(
            *("v1", "Secret", place.configuration),
            type="Opaque",
            immutable=True,
            stringData={file[0]: file[1]} if file else {},
        ),
        manifest(*("apps/v1", "Deployment"), spec=_deployment(place, settings, labels)),
        manifest(
            *("v1", "Service"),
            spec={
                "selector": labels,
                "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
            },
        ),
        manifest(*("autoscaling/v2", "HorizontalPodAutoscaler"), spec=_scaler(name, settings)),
        manifest(
            *("policy/v1", "PodDisruptionBudget"),
            spec={"maxUnavailable": 1, "selector": {"matchLabels": labels}},
        ),
    ]


def _deployment(
    place: Installation, settings: KubernetesSettings, labels: dict[str, str]
) -> dict[str, Any]:
    """Never fewer pods than serve now: one goes when another one is ready."""
    rolling = {"maxUnavailable": 0, "maxSurge": 1}
    annotations = {"embedding-pipelines/pipeline": place.pipeline}
    return {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "template": {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": _pod(place, settings),
        },
    }


def _scaler(name: str, settings: KubernetesSettings) -> dict[str, Any]:
    """So many pods that their processors are as busy as the settings say."""
    least, most = settings.replicas
    average = {"type": "Utilization", "averageUtilization": settings.cpu_percent}
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": least,
        "maxReplicas": most,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": average}}],
    }


def _pod(place: Installation, settings: KubernetesSettings) -> dict[str, Any]:
    """First the bundle is taken up, and refused if it is damaged or does not reproduce; then it is
    served. Nothing but three folders can be written."""
    folders = {"home": HOME, "work": "/srv/cache", "temporary": "/tmp"}
    mounts: list[dict[str, Any]] = [
        {"name": name, "mountPath": path} for name, path in folders.items()
    ]
    mounts.append({"name": "configuration", "mountPath": f"{HOME}/pipelines", "readOnly": True})
    amounts = {"cpu": settings.cpu, "memory": settings.memory}
    shared = {
        "image": settings.image,
        "envFrom": [{"secretRef": {"name": settings.secret}}],
        "env": [{"name": "XDG_STATE_HOME", "value": "/srv/cache/state"}],
        "volumeMounts": mounts,
        "resources": {"requests": amounts, "limits": {"memory": settings.memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }

    def probe(path: str, **more: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 2, **more}

    return {
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [{"name": "import", "args": ["import", place.bundle], **shared}],
        "containers": [
            {
                "name": "server",
                "args": ["serve", "--host", "0.0.0.0", "--port", str(PORT)],
                "ports": [{"name": "http", "containerPort": PORT}],
                "startupProbe": probe("/ready", periodSeconds=2, failureThreshold=300),
                "readinessProbe": probe("/ready", periodSeconds=2, failureThreshold=1),
                "livenessProbe": probe("/health", periodSeconds=10, failureThreshold=6),
                **shared,
            }
        ],
        "volumes": [
            *({"name": name, "emptyDir": {}} for name in folders),
            {"name": "configuration", "secret": {"secretName": place.configuration}},
        ],
    }


@dataclass(frozen=True)
class _Kubectl:
    """kubectl, with the user's own context. Its errors are TargetErrors in its own words."""

    program: str
    namespace: str

    def __call__(self, *arguments: str, text: str = "", seconds: float = COMMAND_SECONDS) -> str:
        command = [self.program, "--namespace", self.namespace, *arguments]
        try:
            process = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            words = f"kubectl {arguments[0]} did not end within {seconds:.0f} s."
            raise TargetError(words) from None
        if process.returncode:
            words = " ".join(process.stderr.split())[:1_000] or "it gave no reason"
            raise TargetError(f"kubectl {arguments[0]} failed: {words}")
        return process.stdout


def _kubectl(namespace: str) -> _Kubectl:
    """Raises ConfigError without it."""
    program = shutil.which("kubectl")
    if program is None:
        raise ConfigError(
            "kubectl is not installed, and deploying to Kubernetes goes through it. Install it, "
            "and see that `kubectl get pods` works."
        )
    return _Kubectl(program, namespace)


def _remove(kubectl: _Kubectl, objects: Sequence[Any]) -> list[str]:
    """Remove these, in the order of KINDS; a line for each that was there."""
    ordered = sorted(objects, key=lambda name: KINDS.index(str(name).partition("/")[0]))
    removed = list[str]()
    for name in ordered:
        kind, _, own = str(name).partition("/")
        said = kubectl(
            "delete", kind.lower(), own, "--ignore-not-found", "--wait=true", "-o", "name"
        )
        removed += [f"{line} in {kubectl.namespace}" for line in said.split()]
    return removed


def _remove_bundles(uris: Sequence[Any]) -> list[str]:
    removed = list[str]()
    for uri in map(str, uris):
        bucket, key = open_bucket(uri)
        if bucket.find(key) is not None:
            bucket.delete([key])
            removed.append(f"object {uri}")
    return removed


def _file_of(home: Path, pipeline: str) -> tuple[str, str] | None:
    """Name and text of a pipeline's file."""
    path = pipeline_file(pipeline, home)
    if path is None:
        return None
    if path.stat().st_size > MAX_SECRET_BYTES // 2:
        raise ConfigError(f"{path} is too large for a secret of Kubernetes, which holds 1 MiB.")
    return path.name, path.read_text(encoding="utf-8")


def _place(endpoint: str, pipeline: str) -> tuple[str, str]:
    """Namespace and name. Raises ConfigError."""
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        parts = urlsplit("")
    namespace, name = parts.netloc, parts.path.strip("/") or pipeline.replace("_", "-")
    if not LABEL.fullmatch(namespace) or not LABEL.fullmatch(name) or parts.query:
        raise ConfigError(
            f"{endpoint!r}: write kubernetes://NAMESPACE or kubernetes://NAMESPACE/NAME, in lower-case "
            "letters, digits and hyphens."
        )
    return namespace, name


def _as_text(manifests: Sequence[Any]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})


def _without(resources: dict[str, Any], others: dict[str, Any], name: str) -> list[Any]:
    """What a list of resources has and another one has not."""
    return [each for each in _list(resources, name) if each not in _list(others, name)]


def _list(resources: dict[str, Any], name: str) -> list[Any]:
    return list(resources.get(name) or [])

"""Kubernetes: manifests that its own schemas take, and what is applied, replaced and removed, by a
kubectl that keeps a list."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from embedding_pipelines.deployments import read_deployments
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.serving.bundle import at_hand, opened
from embedding_pipelines.serving.targets.deploy import deploy, target_of, undeploy
from embedding_pipelines.serving.targets.kubernetes import Installation, _place, manifests_of
from embedding_pipelines.serving.targets.settings import KubernetesSettings
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.chain import run_steps, top, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import UNMEASURED

PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title]}}
model: {{provider: hashing}}
partitions: 1
{UNMEASURED}"""
ENDPOINT = "kubernetes://search/finder"
KUBECTL = f"""\
#!{sys.executable}
import json, os, sys
folder = os.path.dirname(os.path.abspath(__file__))
path = os.path.join(folder, "cluster.json")
cluster = json.load(open(path)) if os.path.exists(path) else {{}}
_, _, namespace, verb, *rest = sys.argv
if verb == "apply":
    for item in json.load(sys.stdin)["items"]:
        assert item["metadata"]["namespace"] == namespace
        cluster[item["kind"].lower() + "/" + item["metadata"]["name"]] = item
elif verb == "rollout":
    if os.path.exists(os.path.join(folder, "broken")):
        sys.exit("error: timed out waiting for the condition")
elif verb == "delete":
    name = rest[0] + "/" + rest[1]
    if cluster.pop(name, None):
        print(name)
json.dump(cluster, open(path, "w"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [(n, f"text number {n}") for n in range(3)], "id,title")
    run_steps(home, "p")
    return home


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the only kubectl, and its cluster."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def here(built: Path, bucket: TestBucket) -> Path:
    (built / "deploy.yaml").write_text(
        f"kubernetes: {{image: 'registry/ep:1', bucket: '{bucket.uri}/b', secret: keys}}\n"
    )
    return built


def cluster(tools: Path) -> dict[str, Any]:
    path = tools / "cluster.json"
    objects: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return objects


def bundle_of(tools: Path) -> str:
    """The bundle that the pods take up."""
    (container,) = cluster(tools)["deployment/finder"]["spec"]["template"]["spec"]["initContainers"]
    verb, uri = container["args"]
    assert verb == "import"
    return str(uri)


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_are_as_kubernetes_own_schemas_have_them(version: str) -> None:
    settings = KubernetesSettings(image="registry/ep:1", bucket="s3://bucket/b", secret="keys")
    place = Installation("search", "finder", "p", "s3://bucket/b/finder-1.tar", "finder-1a2b")
    manifests = manifests_of(place, settings, ("p.yaml", PIPELINE))
    assert [each["kind"] for each in manifests] == [
        *("Secret", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget")
    ]
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)
    wrong = {**manifests[1], "spec": {**manifests[1]["spec"], "replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, version, strict=True)


def test_pods_mount_the_configuration_and_are_probed() -> None:
    settings = KubernetesSettings(image="i", bucket="s3://bucket/b", secret="keys")
    place = Installation("search", "finder", "p", "s3://bucket/b/finder-1.tar", "finder-1a2b")
    secret, deployment, service, scaler, _ = manifests_of(place, settings, ("p.yaml", PIPELINE))
    pod = deployment["spec"]["template"]["spec"]
    (server,) = pod["containers"]
    assert secret["stringData"] == {"p.yaml": PIPELINE}
    assert {"name": "configuration", "secret": {"secretName": secret["metadata"]["name"]}} in pod[
        "volumes"
    ]
    mounts = {each["name"]: each["mountPath"] for each in server["volumeMounts"]}
    assert mounts["configuration"] == "/srv/home/pipelines"
    assert server["readinessProbe"]["httpGet"] == {"path": "/ready", "port": "http"}
    assert server["livenessProbe"]["httpGet"]["path"] == "/health"
    assert pod["terminationGracePeriodSeconds"] == 30
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (2, 10)
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert server["securityContext"]["readOnlyRootFilesystem"]


def test_it_is_applied_replaced_and_removed_as_a_whole(
    here: Path, tools: Path, bucket: TestBucket
) -> None:
    warehouse = Warehouse(here)
    deployment = deploy(warehouse, "p", ENDPOINT)
    assert deployment.is_complete
    first, names = bundle_of(tools), sorted(cluster(tools))
    assert len(names) == 5
    with opened(first) as home:  # as the pods do
        assert top(home, "p", "number 2") == ["2"]
    deploy(warehouse, "p", ENDPOINT)
    second = bundle_of(tools)
    assert second != first
    assert len(cluster(tools)) == 5
    with pytest.raises(Exception, match="There is no bundle"), at_hand(first):
        pass
    removed = undeploy(warehouse, "p", ENDPOINT)
    assert len(removed) == 6
    assert removed[-1] == f"object {second}"
    assert "deployment/finder in search" in removed
    assert cluster(tools) == {}
    assert read_deployments(warehouse.pipeline("p")) == []
    with pytest.raises(Exception, match="There is no bundle"), at_hand(second):
        pass


def test_pods_that_do_not_become_ready_leave_what_served_before(here: Path, tools: Path) -> None:
    warehouse = Warehouse(here)
    (tools / "broken").touch()
    with pytest.raises(TargetError, match=r"did not become ready.*timed out"):
        deploy(warehouse, "p", ENDPOINT)
    assert cluster(tools) == {}
    assert read_deployments(warehouse.pipeline("p")) == []
    (tools / "broken").unlink()
    first = deploy(warehouse, "p", ENDPOINT)
    before, uri = cluster(tools), bundle_of(tools)
    (tools / "broken").touch()
    with pytest.raises(TargetError, match="did not become ready"):
        deploy(warehouse, "p", ENDPOINT)
    assert cluster(tools) == before
    with at_hand(uri) as path:
        assert path.stat().st_size
    assert read_deployments(warehouse.pipeline("p")) == [first]
    undeploy(warehouse, "p")
    assert cluster(tools) == {}


def test_without_kubectl_it_says_so(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="kubectl is not installed"):
        deploy(Warehouse(here), "p", ENDPOINT)
    assert read_deployments(Warehouse(here).pipeline("p")) == []


def test_endpoints() -> None:
    assert target_of("kubernetes://search").name == "kubernetes"
    assert _place("kubernetes://search", "my_pipeline") == ("search", "my-pipeline")
    assert _place("kubernetes://search/finder", "p") == ("search", "finder")
    for wrong in ("kubernetes://", "kubernetes://a b", "kubernetes://A", "kubernetes://a/b/c"):
        with pytest.raises(ConfigError, match="write kubernetes://"):
            _place(wrong, "p")

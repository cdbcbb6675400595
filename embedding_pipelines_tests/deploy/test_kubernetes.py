"""The manifests of deploy/kubernetes: those of Kubernetes' own kinds, and all pods, are as its
schemas have them, and they agree with one another and with this package."""

import re
from importlib.metadata import version
from typing import Any

import kubernetes_validate
import pytest
import yaml

from embedding_pipelines.engines.ray import Ray
from embedding_pipelines_tests.page import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def templates() -> list[dict[str, Any]]:
    """The pods' templates of the Ray cluster, the head's first."""
    (cluster,) = documents("raycluster.yaml")
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"] for group in groups]


def deployment() -> dict[str, Any]:
    """What Dagster's chart makes the code location and run pods of."""
    (values,) = documents("dagster.yaml")
    (only,) = values["dagster-user-deployments"]["deployments"]
    return dict(only)


@pytest.mark.parametrize("version", ["1.32", "1.37"])
def test_manifests_and_pods_are_as_kubernetes_own_schemas_have_them(version: str) -> None:
    own = documents("home.yaml")
    assert [each["kind"] for each in own] == ["PersistentVolumeClaim", "NetworkPolicy"]
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)
    runs = deployment()
    container = {"name": "run", "image": "i", "volumeMounts": runs["volumeMounts"]}
    container |= {"env": runs["env"], "resources": runs["resources"]}
    pods = [template["spec"] for template in templates()]
    pods.append(
        {
            "containers": [container],
            "volumes": runs["volumes"],
            "securityContext": runs["podSecurityContext"],
        }
    )
    for spec in pods:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        kubernetes_validate.validate(pod, version, strict=True)


def test_workers_and_runs_see_one_home_and_one_image() -> None:
    claim, policy = documents("home.yaml")
    name, runs = claim["metadata"]["name"], deployment()
    image = f"{runs['image']['repository']}:{runs['image']['tag']}"
    places = {(mount["name"], mount["mountPath"]) for mount in runs["volumeMounts"]}
    volumes = [runs["volumes"]]
    for template in templates():
        (container,) = template["spec"]["containers"]
        assert container["image"] == image
        assert container["env"] == runs["env"]
        assert [each["secretRef"] for each in container["envFrom"]] == runs["envSecrets"]
        places |= {(mount["name"], mount["mountPath"]) for mount in container["volumeMounts"]}
        volumes.append(template["spec"]["volumes"])
        assert template["metadata"]["labels"] == policy["spec"]["podSelector"]["matchLabels"]
    assert places == {("home", "/srv/home")}
    for each in volumes:
        assert each == [{"name": "home", "persistentVolumeClaim": {"claimName": name}}]
    sources = policy["spec"]["ingress"][0]["from"]
    assert {"podSelector": {"matchLabels": runs["labels"]}} in sources


def test_versions_are_those_that_are_installed() -> None:
    (cluster,) = documents("raycluster.yaml")
    assert cluster["spec"]["rayVersion"] == version("ray")
    values = (FOLDER / "dagster.yaml").read_text(encoding="utf-8")
    assert re.findall(r"--version (\S+)", values) == [version("dagster")]
    dockerfile = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
    assert re.findall(r"dagster-k8s==([\d.]+)", dockerfile) == [version("dagster-postgres")]


def test_the_engine_that_the_manifest_names_is_one() -> None:
    text = (FOLDER / "raycluster.yaml").read_text(encoding="utf-8")
    (line,) = re.findall(r"#\s+engine: (\{.*\})", text)
    engine = Ray.model_validate(yaml.safe_load(line))
    (cluster,) = documents("raycluster.yaml")
    name, (group,) = cluster["metadata"]["name"], cluster["spec"]["workerGroupSpecs"]
    assert engine.address == f"ray://{name}-head-svc:10001"
    assert engine.workers == group["maxReplicas"]
    (worker,) = group["template"]["spec"]["containers"]
    assert engine.cpus_per_worker == int(worker["resources"]["requests"]["cpu"])

"""SageMaker, against the control plane that moto has: what is created, replaced and removed."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx2
import pytest
from botocore.loaders import JSONFileLoader

from embedding_pipelines.deployments import Deployment, read_deployments
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.serving.targets import sagemaker
from embedding_pipelines.serving.targets.deploy import deploy, target_of, undeploy
from embedding_pipelines.serving.targets.sagemaker import _Aws, _place
from embedding_pipelines.storage.warehouse import Warehouse
from embedding_pipelines_tests.buckets import TestBucket
from embedding_pipelines_tests.chain import run_steps, write_csv, write_pipeline
from embedding_pipelines_tests.conftest import UNMEASURED
from embedding_pipelines_tests.serving.processes import serving

PIPELINE = f"""\
source: {{kind: csv, path: 'data/*.csv', id: id, text: [title]}}
model: {{provider: hashing}}
partitions: 1
{UNMEASURED}"""
load_file = JSONFileLoader.load_file
ENDPOINT = "https://runtime.sagemaker.us-east-1.amazonaws.com/endpoints/finder"


@functools.cache
def parsed(path: str) -> Any:
    """What a service of AWS can do: megabytes, which each session would read again."""
    return load_file(JSONFileLoader(), path)


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: parsed(path))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("built")
    write_pipeline(home, "p", PIPELINE)
    write_csv(home, "a.csv", [(n, f"text number {n}") for n in range(3)], "id,title")
    run_steps(home, "p")
    return home


@pytest.fixture
def here(built: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with a release; afterwards AWS has nothing left, and neither has the record."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(sagemaker, "WAIT_SECONDS", 0.01)
    settings = f"""\
sagemaker:
  role: arn:aws:iam::123456789012:role/serve
  image: 123456789012.dkr.ecr.us-east-1.amazonaws.com/embedding-pipelines:0.1
  bucket: {bucket.uri}/bundles
"""
    (built / "deploy.yaml").write_text(settings)
    yield built
    assert everything(bucket) == [[], [], [], []]
    assert read_deployments(Warehouse(built).pipeline("p")) == []


@functools.cache  # to make one takes a tenth of a second
def client_of(address: str, service: str) -> Any:
    return boto3.client(service, region_name="us-east-1", endpoint_url=address)


def client(bucket: TestBucket, service: str) -> Any:
    return client_of(bucket.address, service)


def everything(bucket: TestBucket) -> list[list[str]]:
    """The names of all endpoints, configurations, models and objects."""
    aws, s3 = client(bucket, "sagemaker"), client(bucket, "s3")
    objects = s3.list_objects_v2(Bucket=bucket.name).get("Contents", [])
    return [
        [each["EndpointName"] for each in aws.list_endpoints()["Endpoints"]],
        [each["EndpointConfigName"] for each in aws.list_endpoint_configs()["EndpointConfigs"]],
        [each["ModelName"] for each in aws.list_models()["Models"]],
        [each["Key"] for each in objects],
    ]


def failing(monkeypatch: pytest.MonkeyPatch, action: str, instead: Callable[..., Any]) -> None:
    """Let one action of AWS do something else."""
    true = _Aws.call

    def call(self: _Aws, service: str, asked: str, *given: Any, **named: Any) -> Any:
        return (instead if asked == action else true)(self, service, asked, *given, **named)

    monkeypatch.setattr(_Aws, "call", call)


def replace(self: _Aws, service: str, action: str, **named: Any) -> None:
    """moto has no `update_endpoint`: what it comes to."""
    self._clients["sagemaker"].delete_endpoint(EndpointName=named["EndpointName"])
    self._clients["sagemaker"].create_endpoint(**named)


def test_a_bundle_becomes_an_endpoint_and_all_of_it_goes(here: Path, bucket: TestBucket) -> None:
    warehouse = Warehouse(here)
    deployment = deploy(warehouse, "p", ENDPOINT)
    assert read_deployments(warehouse.pipeline("p")) == [deployment]
    ((endpoint,), (configuration,), (model,), (key,)) = everything(bucket)
    assert endpoint == "finder"
    assert model == configuration
    assert key == f"bundles/{model}/bundle.tar"
    aws = client(bucket, "sagemaker")
    container = aws.describe_model(ModelName=model)["PrimaryContainer"]
    assert container["ModelDataSource"]["S3DataSource"] == {
        "S3Uri": f"{bucket.uri}/bundles/{model}/",
        "S3DataType": "S3Prefix",
        "CompressionType": "None",
    }
    assert container["Environment"] == {"EMBEDDING_PIPELINES_SAGEMAKER": "1"}
    (variant,) = aws.describe_endpoint_config(EndpointConfigName=configuration)[
        "ProductionVariants"
    ]
    assert (variant["ModelName"], variant["InstanceType"]) == (model, "ml.m5.large")
    assert undeploy(warehouse, "p", ENDPOINT) == [
        "endpoint finder",
        f"endpoint configuration {configuration}",
        f"model {model}",
        f"object {bucket.uri}/{key}",
    ]


@pytest.mark.slow
def test_the_bundle_in_s3_is_what_the_container_serves(
    here: Path, bucket: TestBucket, tmp_path: Path
) -> None:
    """The same process that the image starts, with what SageMaker lays at its feet."""
    deploy(Warehouse(here), "p", "finder")
    (_, _, _, (key,)) = everything(bucket)
    archive = tmp_path / "bundle.tar"
    client(bucket, "s3").download_file(bucket.name, key, str(archive))
    with serving(tmp_path, "--sagemaker", "--bundle", str(archive)) as address:
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(f"{address}/ping", timeout=2).status_code == 200
        reply = httpx2.post(f"{address}/invocations", json={"model": "p", "input": "text"})
        assert len(reply.json()["data"][0]["embedding"]) == 64
    undeploy(Warehouse(here), "p")


def test_a_second_release_takes_the_place_of_the_first(
    here: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "update_endpoint", replace)
    first = deploy(Warehouse(here), "p", ENDPOINT)
    second = deploy(Warehouse(here), "p", ENDPOINT)
    assert first.resources["models"] != second.resources["models"]
    assert [len(names) for names in everything(bucket)] == [1, 1, 1, 1]
    assert everything(bucket)[2] == second.resources["models"]
    undeploy(Warehouse(here), "p")


@pytest.mark.parametrize(
    "action", ["upload_file", "create_model", "create_endpoint_config", "create_endpoint"]
)
def test_what_fails_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    def refuse(*given: Any, **named: Any) -> None:
        raise TargetError("AWS refuses it")

    with monkeypatch.context() as patch:
        failing(patch, action, refuse)
        with pytest.raises(TargetError, match="AWS refuses it"):
            deploy(Warehouse(here), "p", ENDPOINT)


def test_a_release_that_does_not_start_leaves_the_one_before(
    here: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SageMaker goes back by itself; what it was to serve is removed."""
    first = deploy(Warehouse(here), "p", ENDPOINT)
    before = everything(bucket)
    failing(monkeypatch, "update_endpoint", lambda *given, **named: None)
    with pytest.raises(TargetError, match="as it was before"):
        deploy(Warehouse(here), "p", ENDPOINT)
    assert everything(bucket) == before
    assert read_deployments(Warehouse(here).pipeline("p")) == [first]
    undeploy(Warehouse(here), "p")


def test_a_process_that_is_killed_leaves_on_record_what_it_has_created(
    here: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_Aws, "remove", lambda *given: [])  # it comes to nothing
        patch.setattr(
            sagemaker.SageMakerTarget, "_create", killed_after(sagemaker.SageMakerTarget._create)
        )
        seen = list[Deployment]()
        folder = Warehouse(here).pipeline("p")
        patch.setattr(
            "embedding_pipelines.serving.targets.deploy.remove_deployment",
            lambda *given: seen.extend(read_deployments(folder)),
        )
        with pytest.raises(KeyboardInterrupt):
            deploy(Warehouse(here), "p", ENDPOINT)
    assert not seen[0].is_complete
    assert len(undeploy(Warehouse(here), "p")) == 4


def killed_after(create: Callable[..., None]) -> Callable[..., None]:
    def created(*given: Any) -> None:
        create(*given)
        raise KeyboardInterrupt

    return created


def test_what_is_gone_already_is_no_error(here: Path, bucket: TestBucket) -> None:
    deploy(Warehouse(here), "p", ENDPOINT)
    client(bucket, "sagemaker").delete_endpoint(EndpointName="finder")
    assert len(undeploy(Warehouse(here), "p")) == 3


def test_an_endpoint_of_somebody_else_is_left_alone(here: Path, bucket: TestBucket) -> None:
    first = deploy(Warehouse(here), "p", ENDPOINT)
    (Warehouse(here).pipeline("p").deployments).rename(here / "kept.json")
    with pytest.raises(TargetError, match="did not create"):
        deploy(Warehouse(here), "p", ENDPOINT)
    (here / "kept.json").rename(Warehouse(here).pipeline("p").deployments)
    assert read_deployments(Warehouse(here).pipeline("p")) == [first]
    undeploy(Warehouse(here), "p")


def test_without_settings_it_says_what_to_write(here: Path) -> None:
    path = here / "deploy.yaml"
    before = path.read_text()
    for text, words in (
        (None, "Write into it"),
        ("sagemaker: {role: x}", "role: must match"),
        ("a: [", "no YAML"),
        ("[]", "must be an object"),
    ):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            deploy(Warehouse(here), "p", ENDPOINT)
    path.write_text(before)


def test_no_secret_is_on_record(here: Path) -> None:
    deploy(Warehouse(here), "p", ENDPOINT)
    assert (
        "a-secret-that-nobody-may-see" not in Warehouse(here).pipeline("p").deployments.read_text()
    )
    undeploy(Warehouse(here), "p")


@pytest.mark.parametrize(
    ("endpoint", "name", "region"),
    [
        ("my-endpoint", "my-endpoint", None),
        (ENDPOINT, "finder", "us-east-1"),
        (f"{ENDPOINT}/invocations", "finder", "us-east-1"),
        ("https://runtime.sagemaker.eu-west-1.amazonaws.com", "my-pipeline", "eu-west-1"),
        ("https://sagemaker-endpoint.aws.com", "sagemaker-endpoint", None),
    ],
)
def test_endpoints(endpoint: str, name: str, region: str | None) -> None:
    assert target_of(endpoint).name == "sagemaker"
    assert _place(endpoint, "my_pipeline") == (name, region)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://runtime.sagemaker.us-east-1.amazonaws.com/endpoints/a_b",
        "https://me:secret@sagemaker-endpoint.aws.com",
    ],
)
def test_names_that_sagemaker_does_not_take(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="names no endpoint"):
        _place(endpoint, "p")

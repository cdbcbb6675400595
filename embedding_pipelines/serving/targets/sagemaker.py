"""Amazon SageMaker: the bundle goes to S3, and a model, an endpoint configuration and an endpoint
serve it. A new release replaces the configuration of an endpoint, which SageMaker does without a
gap: it goes back by itself if the new container does not answer."""

import hashlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from embedding_pipelines.deployments import Deployment
from embedding_pipelines.errors import ConfigError, TargetError
from embedding_pipelines.extras import need
from embedding_pipelines.serving.targets.base import Order, Resources, Target
from embedding_pipelines.serving.targets.settings import SageMakerSettings, sagemaker_settings

NAME = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}")
RUNTIME = re.compile(r"runtime\.sagemaker(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com")
OBJECT = "bundle.tar"  # where the container looks for it
WAIT_SECONDS = 10.0  # between two looks at an endpoint
READY_SECONDS = 3_600.0  # that an endpoint may take
START_SECONDS, DOWNLOAD_SECONDS = 900, 1_800  # of the container's first answer, and of the bundle
VARIANT = "live"
NOT_THERE = ("Could not find", "does not exist", "NoSuchKey")


class SageMakerTarget(Target):
    name = "sagemaker"
    example = "https://runtime.sagemaker.REGION.amazonaws.com/endpoints/NAME"

    def accepts(self, endpoint: str) -> bool:
        if NAME.fullmatch(endpoint):
            return True
        try:
            parts = urlsplit(endpoint)
        except ValueError:
            return False
        return parts.scheme == "https" and "sagemaker" in (parts.hostname or "")

    def deploy(self, order: Order) -> Resources:
        settings = sagemaker_settings(order.home)
        name, region = _place(order.endpoint, order.pipeline)
        region = region or settings.region
        with order.bundle.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]
        with _Aws(region) as aws:
            new = _names(name, f"{digest}-{int(time.time()):x}", settings, aws.region)
            old = dict(order.before.resources) if order.before else {}
            created = aws.status(name) is None
            if not created and not old:
                raise TargetError(
                    f"SageMaker has an endpoint {name!r} that this home did not create. Delete it, or "
                    "name another endpoint."
                )
            # Both until the endpoint has changed over: `undeploy` removes whichever is there.
            order.keep(_both(old, new) if old else new)
            try:
                self._create(aws, order, settings, new, created)
            except BaseException:
                aws.remove(new if created else {**new, "endpoint": None})
                order.keep(None)
                raise
            if old:
                aws.remove({**old, "endpoint": None})
        return new

    def _create(
        self,
        aws: "_Aws",
        order: Order,
        settings: SageMakerSettings,
        new: dict[str, Any],
        created: bool,
    ) -> None:
        bucket, key = _split(new["objects"][0])
        order.progress.note(f"uploading the bundle to {new['objects'][0]}")
        aws.call("s3", "upload_file", str(order.bundle), bucket, key)
        aws.call(
            "sagemaker",
            "create_model",
            ModelName=new["models"][0],
            ExecutionRoleArn=settings.role,
            PrimaryContainer={
                "Image": settings.image,
                "ModelDataSource": {
                    "S3DataSource": {
                        "S3Uri": f"s3://{bucket}/{key.removesuffix(OBJECT)}",
                        "S3DataType": "S3Prefix",
                        "CompressionType": "None",
                    }
                },
                "Environment": {"EMBEDDING_PIPELINES_SAGEMAKER": "1"},
            },
        )
        aws.call(
            "sagemaker",
            "create_endpoint_config",
            EndpointConfigName=new["configurations"][0],
            ProductionVariants=[
                {
                    "VariantName": VARIANT,
                    "ModelName": new["models"][0],
                    "InstanceType": settings.instance,
                    "InitialInstanceCount": settings.instances,
                    "ContainerStartupHealthCheckTimeoutInSeconds": START_SECONDS,
                    "ModelDataDownloadTimeoutInSeconds": DOWNLOAD_SECONDS,
                }
            ],
        )
        change = "create_endpoint" if created else "update_endpoint"
        configuration = new["configurations"][0]
        aws.call(
            "sagemaker", change, EndpointName=new["endpoint"], EndpointConfigName=configuration
        )
        order.progress.note(f"waiting for endpoint {new['endpoint']}: it takes minutes")
        aws.wait(new["endpoint"], configuration)

    def undeploy(self, home: Path, deployment: Deployment, key: str) -> list[str]:
        with _Aws(str(deployment.resources["region"])) as aws:
            return aws.remove(dict(deployment.resources))


@dataclass
class _Aws:
    """AWS's API; every error is a TargetError in a sentence."""

    region_name: str | None

    def __enter__(self) -> "_Aws":
        boto3 = need("boto3", "buckets")
        with _explained():
            self._session = boto3.session.Session(region_name=self.region_name)
            if self._session.region_name is None:
                raise ConfigError(
                    "No region is known. Set sagemaker.region in deploy.yaml, or AWS_DEFAULT_REGION."
                )
            self._clients = {
                name: self._session.client(name, region_name=self.region)
                for name in ("s3", "sagemaker")
            }
        return self

    def __exit__(self, *error: object) -> None:
        for client in self._clients.values():
            client.close()

    @property
    def region(self) -> str:
        return str(self._session.region_name)

    def call(self, service: str, action: str, *arguments: Any, **options: Any) -> Any:
        with _explained(action):
            return getattr(self._clients[service], action)(*arguments, **options)

    def status(self, endpoint: str) -> dict[str, Any] | None:
        """What SageMaker says of an endpoint, None if there is none."""
        try:
            reply: dict[str, Any] = self.call(
                "sagemaker", "describe_endpoint", EndpointName=endpoint
            )
            return reply
        except TargetError as error:
            if _is_missing(error):
                return None
            raise

    def wait(self, endpoint: str, configuration: str | None) -> None:
        """Until an endpoint serves a configuration; None: until it is gone. Raises TargetError if it
        never does."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            status = self.status(endpoint)
            if configuration is None and status is None:
                return
            state = status["EndpointStatus"] if status else "gone"
            if configuration is not None and state in ("InService", "Failed", "gone"):
                if (
                    status
                    and state == "InService"
                    and status["EndpointConfigName"] == configuration
                ):
                    return
                reason = (status or {}).get("FailureReason", "it is as it was before")
                raise TargetError(f"SageMaker's endpoint {endpoint!r}: {state}: {reason}")
            time.sleep(WAIT_SECONDS)
        raise TargetError(f"SageMaker's endpoint {endpoint!r} is not ready after an hour.")

    def remove(self, resources: dict[str, Any]) -> list[str]:
        """Remove what is still there of these resources; a line for each."""
        removed = list[str]()
        if endpoint := resources.get("endpoint"):
            if self._is_removed("sagemaker", "delete_endpoint", EndpointName=endpoint):
                removed.append(f"endpoint {endpoint}")
            self.wait(endpoint, None)
        kinds = (
            (
                "configurations",
                "endpoint configuration",
                "delete_endpoint_config",
                "EndpointConfigName",
            ),
            ("models", "model", "delete_model", "ModelName"),
        )
        for kind, title, action, argument in kinds:
            for name in resources.get(kind, ()):
                if self._is_removed("sagemaker", action, **{argument: name}):
                    removed.append(f"{title} {name}")
        for uri in resources.get("objects", ()):
            bucket, key = _split(uri)
            place = {"Bucket": bucket, "Key": key}
            # S3 deletes what is not there without a word.
            if self._is_removed("s3", "head_object", **place):
                self.call("s3", "delete_object", **place)
                removed.append(f"object {uri}")
        return removed

    def _is_removed(self, service: str, action: str, **options: str) -> bool:
        """Whether an action found what it is about."""
        try:
            self.call(service, action, **options)
            return True
        except TargetError as error:
            if _is_missing(error):
                return False
            raise


def _is_missing(error: TargetError) -> bool:
    return any(words in str(error) for words in (*NOT_THERE, "(404)"))


@contextmanager
def _explained(action: str = "") -> Iterator[None]:
    errors = need("botocore.exceptions", "buckets")
    try:
        yield
    except errors.ClientError as error:
        words = error.response.get("Error", {})
        text = f"{words.get('Message', 'it gave no reason')} ({words.get('Code', 'no code')})"
        raise TargetError(f"AWS refuses {action}: {text}") from None
    except (errors.BotoCoreError, need("boto3.exceptions", "buckets").Boto3Error) as error:
        raise TargetError(
            f"AWS cannot be asked{f' for {action}' if action else ''}: {error}. Set credentials as "
            "for AWS's own tools."
        ) from None


def _place(endpoint: str, pipeline: str) -> tuple[str, str | None]:
    """An endpoint's name, and the region that its address names. Raises ConfigError for another
    name than SageMaker takes."""
    if NAME.fullmatch(endpoint):
        return endpoint, None
    parts = urlsplit(endpoint)
    host = parts.hostname or ""
    match = RUNTIME.fullmatch(host)
    path = re.fullmatch(r"/endpoints/([^/]+)(?:/invocations)?/?", parts.path)
    name = path[1] if path else pipeline.replace("_", "-") if match else host.partition(".")[0]
    if not NAME.fullmatch(name) or parts.username or parts.query:
        raise ConfigError(
            f"{endpoint!r} names no endpoint of SageMaker. Write its name, or https://runtime."
            "sagemaker.REGION.amazonaws.com/endpoints/NAME."
        )
    return name, match[1] if match else None


def _names(endpoint: str, mark: str, settings: SageMakerSettings, region: str) -> dict[str, Any]:
    name = f"{endpoint[: 62 - len(mark)].rstrip('-')}-{mark}"
    return {
        "region": region,
        "endpoint": endpoint,
        "models": [name],
        "configurations": [name],
        "objects": [f"{settings.bucket.rstrip('/')}/{name}/{OBJECT}"],
    }


def _both(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    lists = {name: [*old[name], *new[name]] for name in ("models", "configurations", "objects")}
    return {**new, **lists}


def _split(uri: str) -> tuple[str, str]:
    """Bucket and key."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key

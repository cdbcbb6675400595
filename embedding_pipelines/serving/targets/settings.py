"""`deploy.yaml` in the home folder: what a cloud needs to know beyond an endpoint. No secret is in
it: credentials are found where AWS's and Kubernetes' own tools find them."""

from pathlib import Path
from typing import Annotated, NoReturn

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from embedding_pipelines.errors import ConfigError, faults_in_words

FILE_NAME = "deploy.yaml"
Bucket = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/[\w.-]+)*/?$")]
Label = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


class SageMakerSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Annotated[str, Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$")]
    """Which SageMaker takes to read the bundle and the image."""

    image: str  # in ECR, made of deploy/Dockerfile
    bucket: Bucket  # with a folder, where bundles are put
    region: str | None = None  # default: the endpoint's address, else AWS's own configuration
    instance: Annotated[str, Field(pattern=r"^ml\.")] = "ml.m5.large"
    instances: Annotated[int, Field(ge=1, le=1000)] = 1


class KubernetesSettings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str  # made of deploy/Dockerfile
    bucket: Bucket  # with a folder, where bundles are put; the pods read it
    secret: Label
    """An existing secret in the namespace: EMBEDDING_API_KEY, and credentials of the bucket, as
    variables of the environment."""

    replicas: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1, le=1000)]] = (2, 10)
    """The fewest and the most pods."""

    cpu: str = "1"
    memory: str = "2Gi"
    cpu_percent: Annotated[int, Field(ge=1, le=100)] = 70
    """Of the CPU that pods ask for: above it, there will be more of them."""


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sagemaker: SageMakerSettings | None = None
    kubernetes: KubernetesSettings | None = None


EXAMPLES = {
    "sagemaker": (
        "sagemaker: {role: 'arn:aws:iam::123456789012:role/NAME', image: "
        "'123456789012.dkr.ecr.REGION.amazonaws.com/embedding-pipelines:0.1', bucket: "
        "s3://bucket/folder}"
    ),
    "kubernetes": (
        "kubernetes: {image: 'registry/embedding-pipelines:0.1', bucket: s3://bucket/folder, "
        "secret: embedding-pipelines}"
    ),
}


def sagemaker_settings(home: Path) -> SageMakerSettings:
    """Raises ConfigError, with what to write, if there are none or they are wrong."""
    return _read(home).sagemaker or _missing(home, "sagemaker")


def kubernetes_settings(home: Path) -> KubernetesSettings:
    """Raises ConfigError, with what to write, if there are none or they are wrong."""
    return _read(home).kubernetes or _missing(home, "kubernetes")


def _missing(home: Path, name: str) -> NoReturn:
    raise ConfigError(
        f"{home / FILE_NAME} does not say how to deploy there. Write into it:\n{EXAMPLES[name]}"
    )


def _read(home: Path) -> Settings:
    path = home / FILE_NAME
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Settings()
    except (yaml.YAMLError, ValueError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f", line {line + 1}" if isinstance(line, int) else ""
        raise ConfigError(f"{path}{where}: this is no YAML. Correct it.") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = faults_in_words(error.errors(include_input=False))
        raise ConfigError(f"{path}: {problems}. Correct it.") from None

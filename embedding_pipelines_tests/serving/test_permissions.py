"""What a pipeline that is sent to a server may name of the environment, and which code it may run."""

from typing import Any

import pytest

from embedding_pipelines.engines.inline import Inline
from embedding_pipelines.engines.ray import Ray
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.cohere import Cohere
from embedding_pipelines.providers.custom import Custom
from embedding_pipelines.providers.openai import Openai
from embedding_pipelines.providers.word2vec import Word2vec
from embedding_pipelines.serving.permissions import Permissions

OWN = {"model": "text-embedding-3-small"}
ELSEWHERE = {**OWN, "base_url": "http://evil.example.org/v1"}


@pytest.mark.parametrize(
    "options",
    [
        Openai(**OWN),
        Openai(**OWN, api_key_env="OPENAI_API_KEY"),
        Openai(**ELSEWHERE),  # which sends no key
        Cohere(model="embed-v4.0"),
        Cohere(model="embed-v4.0", base_url="https://api.cohere.com"),
    ],
)
def test_a_key_goes_to_its_own_service(options: Any) -> None:
    Permissions().check_model(options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (Openai(**OWN, api_key_env="AWS_SECRET_ACCESS_KEY"), "AWS_SECRET_ACCESS_KEY"),
        (Openai(**ELSEWHERE, api_key_env="OPENAI_API_KEY"), "OPENAI_API_KEY"),
        (Cohere(model="embed-v4.0", base_url="http://evil.example.org"), "COHERE_API_KEY"),
    ],
)
def test_no_other_variable_goes_anywhere_and_no_key_elsewhere(options: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=f"does not send {name} to http.*--variable {name}"):
        Permissions().check_model(options)
    Permissions(frozenset({name})).check_model(options)


@pytest.mark.parametrize("options", [Custom(cls="m:M"), Word2vec(vectors="v.kv", trusted=True)])
def test_code_runs_where_it_is_allowed(options: Any) -> None:
    with pytest.raises(ConfigError, match=r"runs code.*--custom-code"):
        Permissions().check_model(options)
    Permissions(code=True).check_model(options)


def test_variables_in_texts_are_those_of_the_list() -> None:
    config = {"description": "x", "model": {"base_url": "http://evil.example.org/${HOME}/${DB}"}}
    with pytest.raises(ConfigError, match=r"\$\{HOME\}.*--variable HOME"):
        Permissions(frozenset({"DB"})).check_texts(config)
    Permissions(frozenset({"DB", "HOME"})).check_texts(config)


def test_no_other_machine_is_sent_work() -> None:
    Permissions().check_engine(Inline())
    with pytest.raises(ConfigError, match="engine: ray has other machines compute"):
        Permissions().check_engine(Ray(address="ray://evil.example.org:10001"))


@pytest.mark.parametrize("output", [None, "exports/things/", "s3://mine/out", "s3://mine/out/a/"])
def test_rows_go_to_a_folder_of_the_home_and_to_buckets_of_the_list(output: str | None) -> None:
    Permissions(outputs=frozenset({"s3://mine/out/"})).check_output(output)


@pytest.mark.parametrize("output", ["s3://mine/", "s3://mine/outside/", "gs://mine/out/"])
def test_rows_go_to_no_other_bucket(output: str) -> None:
    with pytest.raises(ConfigError, match=f"output: .*--output {output}"):
        Permissions(outputs=frozenset({"s3://mine/out/"})).check_output(output)

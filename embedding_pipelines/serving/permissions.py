"""What a pipeline that comes over the network may name: variables of the environment that hold a
service's key and go to that service, code of the user's own and buckets to deliver to only where the
server allows it."""

import json
from dataclasses import dataclass
from typing import Any

from embedding_pipelines.engines.base import Engine
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.objects import is_uri
from embedding_pipelines.providers.base import ProviderOptions
from embedding_pipelines.storage.output import is_below
from embedding_pipelines.variables import VARIABLE

REMEDY = "have whoever runs the server start it with"


@dataclass(frozen=True)
class Permissions:
    """What whoever runs a server allows those who send it pipelines. Their own files are not asked.

    `variables` may be named anywhere in a configuration. `code`: models that run a class of the home
    folder, or open a pickle. `outputs`: prefixes of buckets that rows may be delivered to; which
    folders are named is looked at elsewhere, for all paths alike.
    """

    variables: frozenset[str] = frozenset()
    code: bool = False
    outputs: frozenset[str] = frozenset()

    def check_texts(self, config: Any) -> None:
        """Raises ConfigError for a `${NAME}` in a JSON value that is not allowed."""
        for name in VARIABLE.findall(json.dumps(config)):
            if name not in self.variables:
                raise ConfigError(
                    f"${{{name}}} is no variable that this server gives to pipelines which are sent "
                    f"to it. Write the value, or {REMEDY} `--variable {name}`."
                )

    def check_engine(self, engine: Engine) -> None:
        """Raises ConfigError for another machine that would be sent work, and code with it."""
        if engine.kind != "inline":
            raise ConfigError(
                f"engine: {engine.kind} has other machines compute, which this server does for no "
                "pipeline that is sent to it. Leave engine out, or let whoever runs the server write "
                "the pipeline file."
            )

    def check_output(self, output: str | None) -> None:
        """Raises ConfigError for a bucket that is not allowed: the server's own credentials would
        write to it what whoever sends the pipeline has named."""
        if output is None or not is_uri(output):
            return
        if not any(is_below(output, place) for place in self.outputs):
            raise ConfigError(
                f"output: this server delivers nothing to {output} for a pipeline that is sent to it. "
                f"Name a folder below its home folder, or {REMEDY} `--output {output}`."
            )

    def check_model(self, options: ProviderOptions) -> None:
        """Raises ConfigError for code that is not allowed, and for a key that would be sent to
        another address than the provider's own."""
        if not self.code and (options.kind == "custom" or getattr(options, "trusted", False)):
            raise ConfigError(
                f"model: {options.kind} runs code, which this server does for no pipeline that is "
                f"sent to it. Name another model, or {REMEDY} `--custom-code`."
            )
        name = getattr(options, "api_key_env", None)
        if name is None or name in self.variables or _is_usual(options):
            return
        raise ConfigError(
            f"model: this server does not send {name} to {_address(options)} for a pipeline that is "
            "sent to it. Leave api_key_env and base_url out, which takes the provider's own key and "
            f"address, or {REMEDY} `--variable {name}`."
        )


def _is_usual(options: ProviderOptions) -> bool:
    """Whether the key is the provider's usual one, and goes to the provider's own address."""
    kind = type(options)
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    if "base_url" in required:
        return False
    values = options.model_dump(exclude={"api_key_env", "base_url"}, exclude_unset=True)
    usual = kind.model_validate(values)
    names = ("api_key_env", "base_url")
    return all(getattr(usual, name, None) == getattr(options, name, None) for name in names)


def _address(options: ProviderOptions) -> str:
    return str(getattr(options, "base_url", "") or getattr(options, "grpc_url", "") or "a service")

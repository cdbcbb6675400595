"""What every provider behind HTTP must keep beside the contract; each kind's test calls it with its
own dialect."""

import pytest

from embedding_pipelines.errors import (
    BadInput,
    Busy,
    ConfigError,
    ProviderError,
    TooLarge,
    Unreachable,
)
from embedding_pipelines.providers.common.http import RemoteModel
from embedding_pipelines_tests.providers.wire import Fault, WireServer

KEY = "sk-not-to-be-seen-0123456789"
TEXTS = ["one cat", "two dogs", "three birds", "four fish"]
MEANINGS: dict[int, type[ProviderError]] = {
    400: BadInput,
    401: ProviderError,
    403: ProviderError,
    404: ProviderError,
    413: TooLarge,
    422: BadInput,
    429: Busy,
    500: Unreachable,
    502: Unreachable,
    503: Busy,
}


def fault_of(model: RemoteModel, server: WireServer, fault: Fault) -> ProviderError:
    """What the model raises for one fault; it asks once, and its text never holds the key."""
    server.faults.append(fault)
    before = len(server.requests)
    with pytest.raises(ProviderError) as caught:
        model.embed(TEXTS, "document")
    assert len(server.requests) == before + 1
    assert KEY not in f"{caught.value!r} {caught.value}"
    return caught.value


def check_service(model: RemoteModel, server: WireServer) -> None:
    """Faults get the class that says what to do, with the service's words; a request without texts
    asks nobody."""
    for status, meaning in MEANINGS.items():
        fault = Fault("status", status, f"It is the {status}th day.", {"retry-after": "7"})
        error = fault_of(model, server, fault)
        assert type(error) is meaning, f"{status} became {error!r}"
        assert f"answered {status}: It is the {status}th day." in str(error)
        assert not isinstance(error, Busy) or error.retry_after_seconds == 7
    for status, remedy in ((401, str(model.options.api_key_env)), (404, "model and base_url")):
        assert remedy in str(fault_of(model, server, Fault("status", status)))
    assert type(fault_of(model, server, Fault("reset"))) is Unreachable
    inside = fault_of(model, server, Fault("inside", message=f"The key {KEY} broke it."))
    assert isinstance(inside, Unreachable)
    assert "answered without vectors: The key *** broke it." in str(inside)
    fault_of(model, server, Fault("status", 401, f"{KEY} is not known here."))

    before, width = len(server.requests), model.space.dimensions
    assert model.embed([], "query").vectors.shape == (0, width)
    assert len(server.requests) == before
    server.faults.append(Fault("short"))
    assert model.embed(TEXTS, "query").vectors.shape == (len(TEXTS), width // 2)


def check_secrecy(model: RemoteModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is nowhere but in the environment, and its absence is an error that names the
    variable."""
    options = model.options
    shown = (
        repr(options),
        options.model_dump_json(),
        model.space.model_dump_json(),
        model.rate_limit.key,
        repr(model),
    )
    assert KEY not in " ".join(shown)
    assert options.api_key_env is not None
    monkeypatch.delenv(options.api_key_env)
    with pytest.raises(ConfigError, match=options.api_key_env):
        model.embed(TEXTS, "document")

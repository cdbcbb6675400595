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
from embedding_pipelines.providers.common.http import Remote
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


def refusal(provider: Remote, server: WireServer, fault: Fault) -> ProviderError:
    """What the provider makes of one fault; it asks once, and its text never holds the key."""
    server.faults.append(fault)
    asked = len(server.requests)
    with pytest.raises(ProviderError) as caught:
        provider.ask(TEXTS, "document")
    assert len(server.requests) == asked + 1
    assert KEY not in f"{caught.value!r} {caught.value}"
    return caught.value


def check_service(provider: Remote, server: WireServer) -> None:
    """Faults get the class that says what to do, with the service's words; an empty call asks
    nothing."""
    for status, meaning in MEANINGS.items():
        fault = Fault("status", status, f"It is the {status}th day.", {"retry-after": "7"})
        error = refusal(provider, server, fault)
        assert type(error) is meaning, f"{status} became {error!r}"
        assert f"answered {status}: It is the {status}th day." in str(error)
        assert not isinstance(error, Busy) or error.retry_after_seconds == 7
    for status, remedy in ((401, str(provider.api_key_env)), (404, "model and base_url")):
        assert remedy in str(refusal(provider, server, Fault("status", status)))
    assert type(refusal(provider, server, Fault("reset"))) is Unreachable
    inside = refusal(provider, server, Fault("inside", message=f"The key {KEY} broke it."))
    assert isinstance(inside, Unreachable)
    assert "answered without vectors: The key *** broke it." in str(inside)
    refusal(provider, server, Fault("status", 401, f"{KEY} is not known here."))

    asked, width = len(server.requests), provider.space.dimensions
    assert provider.ask([], "query").vectors.shape == (0, width)
    assert len(server.requests) == asked
    server.faults.append(Fault("short"))
    assert provider.ask(TEXTS, "query").vectors.shape == (len(TEXTS), width // 2)


def check_secrecy(provider: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is nowhere but in the environment, and its absence is an error that names the
    variable."""
    shown = (
        repr(provider),
        provider.model_dump_json(),
        provider.space.model_dump_json(),
        provider.flow_key,
    )
    assert KEY not in " ".join(shown)
    assert provider.api_key_env is not None
    monkeypatch.delenv(provider.api_key_env)
    with pytest.raises(ConfigError, match=provider.api_key_env):
        provider.ask(TEXTS, "document")

"""OpenAI's SDK as `openai` uses it: one client per address and key, and its exceptions as ours."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from embedding_pipelines.extras import need
from embedding_pipelines.providers.common.http import Remote, Unreachable

if TYPE_CHECKING:
    from openai import OpenAI

BASE_URL = "https://api.openai.com/v1"

_MAKING = threading.Lock()


def is_openai(base_url: str) -> bool:
    return urlsplit(base_url).hostname == urlsplit(BASE_URL).hostname


def client(base_url: str, key: str | None) -> OpenAI:
    """Keeps its connections open, and may be used by several threads. Raises ConfigError without
    the SDK."""
    with (
        _MAKING
    ):  # else threads that begin together would each make one, and all but one be thrown away
        return _made(base_url, key)


@functools.cache
def _made(base_url: str, key: str | None) -> OpenAI:
    sdk = need("openai", "openai")
    # Without one, the SDK would look for a key of its own accord; `unsent` keeps this one from
    # being sent.
    made: OpenAI = sdk.OpenAI(api_key=key or "none", base_url=base_url, max_retries=0)
    return made


def unsent(base_url: str, key: str | None) -> dict[str, Any]:
    """Headers of each request that the SDK would fill from the environment, or with a key that is
    none."""
    omit = need("openai", "openai").omit
    theirs = {} if is_openai(base_url) else {"openai-organization": omit, "openai-project": omit}
    return theirs if key else {**theirs, "authorization": omit}


@contextlib.contextmanager
def told(provider: Remote) -> Iterator[None]:
    """What the SDK raises as `Provider.ask` does: in the service's words, and without the key.

    Without their cause, too: the service may repeat the key, and a traceback would show it.
    """
    openai = need("openai", "openai")
    try:
        yield
    except openai.APIStatusError as error:
        raise provider.fault(
            error.status_code, error.response.text, error.response.headers
        ) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        words = provider.redacted(f"{type(cause).__name__} {cause}".rstrip())
        raise Unreachable(f"{provider.address} cannot be reached: {words.rstrip('.')}.") from None

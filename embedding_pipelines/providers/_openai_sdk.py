"""OpenAI's SDK as `openai` uses it: the headers of a request, and the SDK's exceptions as ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from embedding_pipelines.errors import Unreachable
from embedding_pipelines.extras import need
from embedding_pipelines.providers.common.http import RemoteModel

BASE_URL = "https://api.openai.com/v1"


def is_openai(base_url: str) -> bool:
    return urlsplit(base_url).hostname == urlsplit(BASE_URL).hostname


def request_headers(model: RemoteModel) -> dict[str, Any]:
    """The model's own key if it has one, and nothing that the SDK would take from the environment
    and send to another server."""
    omit = need("openai", "openai").omit
    withheld = ["authorization"]
    if not is_openai(model.address):
        withheld += ["openai-organization", "openai-project"]
    return {**dict.fromkeys(withheld, omit), **model.bearer}


@contextlib.contextmanager
def translated_errors(model: RemoteModel) -> Iterator[None]:
    """What the SDK raises as `EmbeddingModel.embed` does: in the service's words, without the key.

    Without their cause, too: the service may repeat the key, and a traceback would show it.
    """
    openai = need("openai", "openai")
    try:
        yield
    except openai.APIStatusError as error:
        raise model.fault(error.status_code, error.response.text, error.response.headers) from None
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        words = model.redact(f"{type(cause).__name__} {cause}".rstrip())
        raise Unreachable(f"{model.address} cannot be reached: {words.rstrip('.')}.") from None

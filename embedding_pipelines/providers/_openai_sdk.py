"""What `openai` and its batch jobs share: headers of a request, and the SDK's errors as ours."""

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
    """The model's own key, if any, and nothing that the SDK takes from the environment and would
    send to another server."""
    omit = need("openai", "openai").omit
    withheld = ["authorization"]
    if not is_openai(model.address):
        withheld += ["openai-organization", "openai-project"]
    return {**dict.fromkeys(withheld, omit), **model.bearer}


@contextlib.contextmanager
def translate_errors(model: RemoteModel) -> Iterator[None]:
    """Raise the SDK's errors as `EmbeddingModel.embed` does, without the key.

    They get no cause: the service may repeat the key, and a traceback would show it.
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

"""Where an agent's API key comes from; only its name goes on from here."""

import itertools
import weakref
from pathlib import Path

from embedding_pipelines.errors import ConfigError
from embedding_pipelines.providers.common.http import SECRETS

_NUMBERS = itertools.count(1)


def key_variable(owner: object, api_key: str | None) -> str | None:
    """What to give a provider as `api_key_env`, as long as `owner` lives; None if it is to take its
    usual variable.

    `api_key` is the key itself, "env:NAME" or "file:/path". Raises ConfigError for a file that
    cannot be read.
    """
    if not api_key:
        return None
    if not isinstance(api_key, str):
        raise ConfigError("api_key is no text.")
    if api_key.startswith("env:"):
        return api_key.removeprefix("env:")
    name = f"API_KEY_OF_{type(owner).__name__}_{next(_NUMBERS)}"
    SECRETS[name] = (
        _content(api_key.removeprefix("file:")) if api_key.startswith("file:") else api_key
    )
    weakref.finalize(owner, SECRETS.pop, name, None)
    return name


def reference(ref: object) -> str:
    """An `api_key_ref` as `key_variable` takes it: a bare path becomes "file:/path".

    Raises ConfigError for what is no reference, without repeating it: it may be a key.
    """
    if isinstance(ref, str) and ref.startswith(("env:", "file:")):
        return ref
    if isinstance(ref, str) and ref.startswith(("/", "./", "../", "~")):
        return f"file:{ref}"
    raise ConfigError(
        "api_key_ref names where the key is: write 'env:NAME' or 'file:/path'. What it says now is not shown, since it "
        "may be a key."
    )


def _content(path: str) -> str:
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the API key cannot be read: {type(error).__name__}.") from error
    if not content:
        raise ConfigError(f"{path}: holds no API key.")
    return content

"""Where an agent's API key comes from; only its name goes on from here."""

from pathlib import Path

from embedding_pipelines.errors import ConfigError


class Secrets(dict[str, str]):
    """Keys by name. Printed, it shows the names alone."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"


def resolve_key(owner: str, api_key: str | None) -> tuple[str | None, Secrets]:
    """What to give a provider as `api_key_env`, and the secret of that name; None if it is to take
    its usual variable.

    `api_key` is the key itself, "env:NAME" or "file:/path". Raises ConfigError for a file that
    cannot be read.
    """
    if not api_key:
        return None, Secrets()
    if not isinstance(api_key, str):
        raise ConfigError("api_key is no text.")
    if api_key.startswith("env:"):
        return api_key.removeprefix("env:"), Secrets()
    name = f"API_KEY_OF_{owner}"
    if api_key.startswith("file:"):
        api_key = _content(api_key.removeprefix("file:"))
    return name, Secrets({name: api_key})


def parse_reference(reference: object) -> str:
    """An `api_key_ref` as `resolve_key` takes it: a bare path becomes "file:/path".

    Raises ConfigError for what is no reference, without repeating it: it may be a key.
    """
    if isinstance(reference, str) and reference.startswith(("env:", "file:")):
        return reference
    if isinstance(reference, str) and reference.startswith(("/", "./", "../", "~")):
        return f"file:{reference}"
    raise ConfigError(
        "api_key_ref names where the key is: write 'env:NAME' or 'file:/path'. What it says now is "
        "not shown, since it may be a key."
    )


def _content(path: str) -> str:
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the API key cannot be read: {type(error).__name__}.") from error
    if not content:
        raise ConfigError(f"{path}: holds no API key.")
    return content

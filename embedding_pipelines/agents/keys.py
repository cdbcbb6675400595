"""Finds an agent's API key and gives it a name, which alone is passed on."""

from pathlib import Path

from embedding_pipelines.errors import ConfigError


class Secrets(dict[str, str]):
    """Keys by name. Its representation shows the names only."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self)})"


def resolve_key(owner: str, api_key: str | None) -> tuple[str | None, Secrets]:
    """A provider's `api_key_env` (None: its default), and the secret of that name.

    `api_key` is the key itself, "env:NAME" or "file:/path". Raises ConfigError for an unreadable
    file.
    """
    if not api_key:
        return None, Secrets()
    if not isinstance(api_key, str):
        raise ConfigError("api_key is not a text.")
    if api_key.startswith("env:"):
        return api_key.removeprefix("env:"), Secrets()
    name = f"API_KEY_OF_{owner}"
    if api_key.startswith("file:"):
        api_key = _content(api_key.removeprefix("file:"))
    return name, Secrets({name: api_key})


def parse_reference(reference: object) -> str:
    """An `api_key_ref` as `resolve_key` takes it: a bare path becomes "file:/path".

    Raises ConfigError for anything else, without repeating it: it may be a key.
    """
    if isinstance(reference, str) and reference.startswith(("env:", "file:")):
        return reference
    if isinstance(reference, str) and reference.startswith(("/", "./", "../", "~")):
        return f"file:{reference}"
    raise ConfigError(
        "api_key_ref names the place of a key: write 'env:NAME' or 'file:/path'. Its value is not "
        "shown, since it may be a key."
    )


def _content(path: str) -> str:
    try:
        content = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the API key: {type(error).__name__}.") from error
    if not content:
        raise ConfigError(f"{path}: holds no API key.")
    return content

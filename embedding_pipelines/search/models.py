"""The models that searches ask: one for the vectors of queries, and a cross-encoder for an order."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedding_pipelines.compression.base import CodecChain
from embedding_pipelines.embedding.cache import EmbeddingCache
from embedding_pipelines.embedding.embed import embed_all
from embedding_pipelines.embedding.request import Request, Sender
from embedding_pipelines.embedding.texts import TooLong, prepare
from embedding_pipelines.errors import ConfigError
from embedding_pipelines.images import pixels_of
from embedding_pipelines.images import prepare as prepare_image
from embedding_pipelines.providers.base import EmbeddingModel, check_reply
from embedding_pipelines.ranking import Query
from embedding_pipelines.releases import Release
from embedding_pipelines.search.bridge import ReleaseBridge
from embedding_pipelines.search.queries import clean_query
from embedding_pipelines.space import Space, require_same_space
from embedding_pipelines.vectors import Vectors

if TYPE_CHECKING:
    from embedding_pipelines.images import ImageLike
    from embedding_pipelines.inference.cross_encoder import CrossEncoder

REMEDY = "Shorten it, or search with its beginning: too_long='cut', on the command line --cut."
ATTEMPTS = 3  # of a query, since a user waits


class QueryModel:
    """What gives queries their vectors in the space of a table: its own model, or another one and the
    bridge to it. Each method raises SpaceMismatchError for vectors of any other space, and gives
    what is to be said of the query, too."""

    def __init__(
        self, model: EmbeddingModel, codec: CodecChain, bridge: ReleaseBridge | None, cache: Path
    ) -> None:
        """`codec` is the table's, `cache` the file of the embedding cache."""
        self.model, self._codec, self._bridge, self._cache = model, codec, bridge, cache
        self._sender = Sender(model)
        self._fitting: Space | None = None  # that was compared with the release's

    def embed(self, release: Release, query: str, too_long: TooLong) -> tuple[Query, list[str]]:
        """A query of a user, cleaned, past the cache. Raises ConfigError for one that is empty or too
        long, or that has no vector."""
        model = self.model
        self._check(release, model.space)
        text = clean_query(release.spec, query, "The query")
        readable = prepare([text], model, "query", too_long, lambda _: "The query", REMEDY)
        request = Request(readable.texts, "query", readable.tokens, attempts=ATTEMPTS)
        response = self._sender.send(request)
        for words in response.rejected.values():
            raise ConfigError(f"The query {query!r} has no vector: {words}")
        vector = check_reply(response.vectors, readable.texts, model.space)[0]
        vector, notes = self.to_table(release, vector, model.space)
        return Query(text, vector), [*readable.notes, *notes]

    def embed_all(
        self, release: Release, texts: list[str], too_long: TooLong
    ) -> tuple[list[Query], list[str]]:
        """As `embed`, many queries, which are clean, through the cache."""
        model = self.model
        self._check(release, model.space)
        readable = prepare(texts, model, "query", too_long, "queries[{}]".format, REMEDY)
        cache = EmbeddingCache(self._cache)
        embeddings = embed_all(texts, model, cache, "query", readable=readable)
        for row, reason in embeddings.rejected.items():
            raise ConfigError(f"queries[{row}] ({texts[row]!r}) has no vector: {reason}")
        vectors, notes = self.to_table(release, embeddings.vectors, model.space)
        queries = [Query(text, vector) for text, vector in zip(texts, vectors, strict=True)]
        return queries, [*readable.notes, *notes]

    def embed_image(self, release: Release, image: "ImageLike") -> tuple[str, Query, list[str]]:
        """The name of an image and the query that it is. Raises ConfigError for a model that takes
        texts alone and for what is no image."""
        model = self.model
        if not model.options.takes_images:
            raise ConfigError(
                f"Release {release.number} of {release.spec.name!r} is of {release.space.title}, "
                "which takes texts alone. Search it with a text."
            )
        self._check(release, model.space)
        try:
            name, pixels = pixels_of(image)
        except (OSError, ValueError, TypeError) as error:
            words = error.strerror or error if isinstance(error, OSError) else error
            name = f" {str(image)!r}" if isinstance(image, str | Path) else ""
            text = str(words).removesuffix(".")
            raise ConfigError(f"The image{name} cannot be searched for: {text}.") from error
        vectors = model.embed_images(prepare_image(pixels, model.resize)[None])
        vector = check_reply(vectors, [name], model.space)[0]
        vector, notes = self.to_table(release, vector, model.space)
        return name, Query("", vector), notes

    def to_table(
        self, release: Release, vectors: Vectors, space: Space
    ) -> tuple[Vectors, list[str]]:
        """Vectors of queries in `space` as the table's own model would have them, before the codec:
        across the bridge, if it begins in this space."""
        self._check(release, space)
        if self._bridge is None or space.id != self._bridge.source:
            return vectors, []
        return self._bridge.map(vectors), [self._bridge.note(space)]

    def _check(self, release: Release, space: Space) -> None:
        if space is self._fitting or (self._bridge and space.id == self._bridge.source):
            return
        require_same_space(
            space.with_codec(self._codec.id),
            release.space.id,
            release.title,
            f"Query it with {release.space.provider}:{release.space.model}, or run "
            f"`embedding-pipelines run {release.spec.name}` to build a release in the new space.",
        )
        self._fitting = space


class Reranker:
    """A cross-encoder, of which one is open at a time; one thread at a time is in it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._encoder: CrossEncoder | None = None
        self._lock = threading.Lock()

    def scores(self, name: str, pairs: Sequence[tuple[str, str]]) -> NDArray[np.float32]:
        """float32[n], what the cross-encoder of this name says of pairs of query and text."""
        from embedding_pipelines.inference.cross_encoder import CrossEncoder

        with self._lock:
            if self._encoder is not None and self._encoder.name != name:
                self._encoder.close()
                self._encoder = None
            self._encoder = self._encoder or CrossEncoder(name, self._home)
            return self._encoder.scores(pairs)

    def close(self) -> None:
        if self._encoder is not None:
            self._encoder.close()

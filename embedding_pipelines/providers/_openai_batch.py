"""OpenAI's Batch interface: a file of requests is uploaded, and answered within a day at half the price.

One text per line, so that each is answered, refused or lost for itself. https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.providers._openai_sdk import client, told, unsent
from embedding_pipelines.providers._remote import Unreachable, spoken
from embedding_pipelines.providers.base import BatchService, BatchState, BatchText, Role

if TYPE_CHECKING:
    from openai.types import Batch

    from embedding_pipelines.providers.openai import Openai

TAG = "embedding_pipelines"  # in the batch's metadata
ENDED = {"failed", "completed", "expired", "cancelled"}
LISTED = 1_000  # batches that are looked through for a tag; the newest come first


class OpenaiBatches(BatchService):
    max_texts = 50_000  # inputs over all requests of a batch of embeddings
    max_bytes = 200_000_000  # of the file

    def __init__(self, provider: Openai) -> None:
        key = provider.api_key
        self._provider, self._client = provider, client(provider.base_url, key)
        self._headers = unsent(provider.base_url, key)

    def submit(self, texts: Mapping[str, str], input_type: Role, tag: str) -> str:
        lines = (
            {
                "custom_id": name,
                "method": "POST",
                "url": "/v1/embeddings",
                "body": self._provider.body([text], input_type),
            }
            for name, text in texts.items()
        )
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        with told(self._provider):
            file = self._client.files.create(
                file=("texts.jsonl", content), purpose="batch", extra_headers=self._headers
            )
            made = self._client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/embeddings",
                completion_window="24h",
                metadata={TAG: tag},
                extra_headers=self._headers,
            )
        return made.id

    def find(self, tag: str) -> str | None:
        with told(self._provider):
            for number, batch in enumerate(self._client.batches.list(limit=100, extra_headers=self._headers)):
                if (batch.metadata or {}).get(TAG) == tag:
                    return batch.id
                if number == LISTED:
                    break
        return None

    def state(self, batch: str) -> BatchState:
        found = self._retrieved(batch)
        counts, usage = found.request_counts, found.usage
        words = ""
        if found.status == "failed":
            errors = (found.errors.data if found.errors else None) or []
            words = spoken(json.dumps({"error": errors[0].message})) if errors else "It does not say why."
        done = counts.completed + counts.failed if counts else 0
        return BatchState(found.status in ENDED, done, usage.total_tokens if usage else None, words)

    def results(self, batch: str) -> Iterator[BatchText]:
        found = self._retrieved(batch)
        for file in (found.output_file_id, found.error_file_id):
            for line in self._lines(file) if file else ():
                yield self._text(line)

    def _retrieved(self, batch: str) -> Batch:
        with told(self._provider):
            return self._client.batches.retrieve(batch, extra_headers=self._headers)

    def _lines(self, file: str) -> Iterator[str]:
        with (
            told(self._provider),
            self._client.files.with_streaming_response.content(file, extra_headers=self._headers) as content,
        ):
            yield from (line for line in content.iter_lines() if line.strip())

    def _text(self, line: str) -> BatchText:
        """One line of a result: its vector, or why there is none."""
        try:
            found = json.loads(line)
            name = str(found["custom_id"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"{self._provider.kind}: a line of a batch's results cannot be read.") from error
        response: Any = found.get("response") or {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            try:
                return BatchText(name, self._provider.read(body, 1).vectors[0])
            except ProviderError as error:
                return BatchText(name, None, str(error))
        words = self._provider.redacted(spoken(json.dumps(body if body else {"error": found.get("error")})))
        return BatchText(name, None, words, is_refused=status in (400, 413, 422))

"""OpenAI's Batch interface: a file of requests is uploaded, and answered within a day at half the
price.

One text per line, so that each is answered, refused or lost for itself.
https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedding_pipelines.errors import ProviderError
from embedding_pipelines.extras import need
from embedding_pipelines.providers._openai_sdk import client, told, unsent
from embedding_pipelines.providers.base import BatchService, BatchState, BatchText, InputType
from embedding_pipelines.providers.common.http import Unreachable
from embedding_pipelines.providers.common.replies import count_within, listed, within

if TYPE_CHECKING:
    from openai import OpenAI

    from embedding_pipelines.providers.openai import Openai

TAG = "embedding_pipelines"  # in the batch's metadata
ENDED = {
    "failed",
    "completed",
    "expired",
    "cancelled",
}  # what is called otherwise is still at work: nothing is lost
OVER = "batch_"  # how the code of a line begins whose text nobody came to: batch_expired, batch_cancelled
PAGE, PAGES = 100, 10  # batches that are looked through for a tag; the newest come first
FILE_BYTES = 200_000_000  # of a batch of embeddings, as the guide states it
READ_BYTES = 1 << 20  # of a result at a time; one of 50,000 texts has hundreds of megabytes
REMEDY = "If it cannot be had any more, delete its record below data/warehouse/batches: its texts are then sent anew."


class OpenaiBatches(BatchService):
    def __init__(self, provider: Openai) -> None:
        self._provider = provider
        self._uploaded = (
            "",
            "",
        )  # tag and file, should the rest of a submission have to be repeated
        self.max_texts = provider.batch_texts
        self.max_bytes = FILE_BYTES - self.max_texts * len(self._line("0" * 32, "", "document"))

    @property
    def _client(self) -> OpenAI:
        return client(self._provider.base_url, self._provider.api_key)

    @property
    def _headers(self) -> dict[str, Any]:
        return unsent(self._provider.base_url, self._provider.api_key)

    def submit(self, texts: Mapping[str, str], input_type: InputType, tag: str) -> str:
        if self._uploaded[0] != tag:
            content = b"".join(self._line(name, text, input_type) for name, text in texts.items())
            with told(self._provider):
                file = self._client.files.with_raw_response.create(
                    file=("texts.jsonl", content), purpose="batch", extra_headers=self._headers
                )
            self._uploaded = (tag, self._id(self._provider.json_of(file.content)))
        with told(self._provider):
            made = self._client.batches.with_raw_response.create(
                input_file_id=self._uploaded[1],
                endpoint="/v1/embeddings",
                completion_window="24h",
                metadata={TAG: tag},
                extra_headers=self._headers,
                timeout=self._provider.timeout_seconds,
            )
        return self._id(self._provider.json_of(made.content))

    def find(self, tag: str) -> str | None:
        omit = need("openai", "openai").omit
        after: str | None = None
        for _ in range(PAGES):
            with told(self._provider):
                reply = self._client.batches.with_raw_response.list(
                    limit=PAGE,
                    after=after or omit,
                    extra_headers=self._headers,
                    timeout=self._provider.timeout_seconds,
                )
            page = self._provider.json_of(reply.content)
            entries = listed(self._provider, page, "data")
            for entry in entries:
                if within(entry, "metadata", TAG) == tag:
                    return self._id(entry)
            if not entries or not within(page, "has_more"):
                return None
            after = self._id(entries[-1])
        return None

    def state(self, batch: str) -> BatchState:
        found = self._retrieved(batch)
        status, words = within(found, "status"), ""
        if status == "failed":
            said = [within(error, "message") for error in within(found, "errors", "data") or ()]
            words = self._spoken({"error": said[0]}) if said and said[0] else "It does not say why."
        done = sum(
            count_within(found, "request_counts", name) or 0 for name in ("completed", "failed")
        )
        return BatchState(
            status in ENDED, done, count_within(found, "usage", "total_tokens"), words
        )

    def results(self, batch: str) -> Iterator[BatchText]:
        found = self._retrieved(batch)
        files = [
            file for name in ("output_file_id", "error_file_id") if (file := within(found, name))
        ]
        known, unread = 0, 0
        for line in (line for file in files for line in self._lines(file) if line.strip()):
            text = self._text(line)
            if text is None:
                unread += 1
            else:
                known += 1
                yield text
        if (
            unread and not known
        ):  # sent again, they would be paid for again, and perhaps for the same
            raise ProviderError(
                f"{self._where}: none of the {unread:,} lines of the results of batch {batch} can be read. {REMEDY}"
            )

    @property
    def _where(self) -> str:
        return f"{self._provider.kind} at {self._provider.address}"

    def _line(self, name: str, text: str, input_type: InputType) -> bytes:
        """One request of the file."""
        body = self._provider.body([text], input_type)
        line = {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _retrieved(self, batch: str) -> Any:
        openai = need("openai", "openai")
        with told(self._provider):
            try:
                reply = self._client.batches.with_raw_response.retrieve(
                    batch, extra_headers=self._headers, timeout=self._provider.timeout_seconds
                )
            except (
                openai.NotFoundError
            ) as error:  # not sent anew: with the wrong key it would be paid for twice
                words = self._provider.quoted(error.response.text)
                raise ProviderError(
                    f"{self._where} does not know batch {batch}: {words} It was submitted with another key or project: "
                    f"set that again. {REMEDY}"
                ) from None
        return self._provider.json_of(reply.content)

    def _lines(self, file: str) -> Iterator[bytes]:
        """The lines of a file; none if it is gone, as results are after a month."""
        import httpx2

        openai = need("openai", "openai")
        rest = b""
        with told(self._provider):
            try:
                with self._client.files.with_streaming_response.content(
                    file, extra_headers=self._headers
                ) as content:
                    for part in content.iter_bytes(READ_BYTES):
                        *lines, rest = (rest + part).split(b"\n")
                        yield from lines
            except openai.NotFoundError:
                return
            except (
                httpx2.HTTPError
            ) as error:  # in the middle of it, where the SDK leaves it as it is
                words = self._provider.redacted(f"{type(error).__name__} {error}".rstrip())
                raise Unreachable(
                    f"{self._where} cannot be reached: {words.rstrip('.')}."
                ) from None
        yield rest

    def _text(self, line: bytes) -> BatchText | None:
        """One line of a result: its vector, or why there is none; None if it cannot be read."""
        try:
            found = json.loads(line)
        except ValueError:
            return None
        name, status = within(found, "custom_id"), within(found, "response", "status_code")
        if not isinstance(name, str):
            return None
        body = within(found, "response", "body")
        if status == 200:
            try:
                return BatchText(name, self._provider.read(body, 1).vectors[0])
            except ProviderError as error:
                return BatchText(name, None, str(error), is_refused=True)
        is_over = status is None and str(within(found, "error", "code")).startswith(OVER)
        return BatchText(
            name,
            None,
            self._spoken(body or {"error": within(found, "error")}),
            is_refused=not is_over,
        )

    def _spoken(self, said: Any) -> str:
        return self._provider.quoted(json.dumps(said))

    def _id(self, reply: Any) -> str:
        found = within(reply, "id")
        if not isinstance(found, str) or not found:
            raise Unreachable(f"{self._where} answered 200 without an id: {self._spoken(reply)}")
        return found

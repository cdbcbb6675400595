"""OpenAI's Batch interface: upload a file of requests, get the answers within a day at half price.

One text per line, so that each succeeds or fails by itself.
https://platform.openai.com/docs/guides/batch
"""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from embedding_pipelines.errors import ProviderError, Unreachable
from embedding_pipelines.extras import need
from embedding_pipelines.providers.base import BatchService, BatchState, BatchText, InputType
from embedding_pipelines.providers.common.replies import count_at, list_at, value_at

if TYPE_CHECKING:
    from embedding_pipelines.providers.openai import OpenaiModel

TAG = "embedding_pipelines"  # in the batch's metadata
# Any other status means that the job is still running.
ENDED = {"failed", "completed", "expired", "cancelled"}
# The beginning of the error codes of texts that were not processed: batch_expired, batch_cancelled.
NOT_PROCESSED = "batch_"
PAGE, PAGES = 100, 10  # of jobs to search for a tag; the newest come first
UPLOAD_SECONDS = 600  # a large file may take longer than the model's timeout
CONNECT_SECONDS = 5
FILE_BYTES = 200_000_000  # of a job of embeddings, from the guide
READ_BYTES = 1 << 20  # of a result at a time; that of 50,000 texts has hundreds of megabytes
REMEDY = (
    "If it is gone for good, delete its record below data/warehouse/batch_jobs; the next run then "
    "sends its texts again."
)


class OpenaiBatches(BatchService):
    def __init__(self, model: "OpenaiModel") -> None:
        self._model = model
        self._upload = ("", "")  # tag and file: a repeated submission uploads nothing again
        self.max_texts = model.options.batch_texts
        self.max_bytes = FILE_BYTES - self.max_texts * len(self._line("0" * 32, "", "document"))

    def submit(self, texts: Mapping[str, str], input_type: InputType, tag: str) -> str:
        model = self._model
        if self._upload[0] != tag:
            content = b"".join(self._line(name, text, input_type) for name, text in texts.items())
            file = ("texts.jsonl", content)
            create = model.sdk.files.with_raw_response.create
            timeout = need("openai", "openai").Timeout(UPLOAD_SECONDS, connect=CONNECT_SECONDS)
            reply = model.call(create, file=file, purpose="batch", timeout=timeout)
            self._upload = (tag, self._id(reply))
        batch = model.call(
            model.sdk.batches.with_raw_response.create,
            input_file_id=self._upload[1],
            endpoint="/v1/embeddings",
            completion_window="24h",
            metadata={TAG: tag},
        )
        return self._id(batch)

    def find(self, tag: str) -> str | None:
        after: Any = need("openai", "openai").omit
        for _ in range(PAGES):
            list_batches = self._model.sdk.batches.with_raw_response.list
            page = self._model.call(list_batches, limit=PAGE, after=after)
            entries = list_at(self._model, page, "data")
            for entry in entries:
                if value_at(entry, "metadata", TAG) == tag:
                    return self._id(entry)
            if not entries or not value_at(page, "has_more"):
                return None
            after = self._id(entries[-1])
        return None

    def state(self, batch: str) -> BatchState:
        reply, words = self._retrieve(batch), ""
        status = value_at(reply, "status")
        if status == "failed":
            errors = value_at(reply, "errors", "data") or [None]
            message = value_at(errors[0], "message")
            words = self._quote({"error": message}) if message else "It gives no reason."
        counts = (count_at(reply, "request_counts", name) for name in ("completed", "failed"))
        texts = sum(count or 0 for count in counts)
        return BatchState(status in ENDED, texts, count_at(reply, "usage", "total_tokens"), words)

    def results(self, batch: str) -> Iterator[BatchText]:
        reply = self._retrieve(batch)
        files = [value_at(reply, name) for name in ("output_file_id", "error_file_id")]
        readable, unreadable = 0, 0
        for line in (line for file in files if file for line in self._lines(file) if line.strip()):
            text = self._text(line)
            if text is None:
                unreadable += 1
            else:
                readable += 1
                yield text
        # Sending them again would cost as much, perhaps for the same result.
        if unreadable and not readable:
            raise ProviderError(
                f"{self._model.where}: the {unreadable:,} lines of the results of batch {batch} "
                f"are all unreadable. {REMEDY}"
            )

    def _line(self, name: str, text: str, input_type: InputType) -> bytes:
        body = self._model.body([text], input_type)
        line = {"custom_id": name, "method": "POST", "url": "/v1/embeddings", "body": body}
        return json.dumps(line, ensure_ascii=False).encode() + b"\n"

    def _retrieve(self, batch: str) -> Any:
        openai, model = need("openai", "openai"), self._model
        with model.translate_errors():
            try:
                reply = model.sdk.batches.with_raw_response.retrieve(
                    batch,
                    extra_headers=model.request_headers,
                    timeout=model.options.timeout_seconds,
                )
            except openai.NotFoundError as error:
                # Do not send it again: with the wrong key it would cost twice.
                words = model.quote(error.response.text)
                raise ProviderError(
                    f"{model.where} has no batch {batch}: {words} If it belongs to another key or "
                    f"project, set that again. {REMEDY}"
                ) from None
        return model.parse_json(reply.content)

    def _lines(self, file: str) -> Iterator[bytes]:
        """The lines of a file; none if it is gone, as after a month."""
        openai = need("openai", "openai")
        rest = b""
        with self._model.translate_errors():
            try:
                with self._model.sdk.files.with_streaming_response.content(
                    file, extra_headers=self._model.request_headers
                ) as content:
                    for part in content.iter_bytes(READ_BYTES):
                        *lines, rest = (rest + part).split(b"\n")
                        yield from lines
            except openai.NotFoundError:
                return
        yield rest

    def _text(self, line: bytes) -> BatchText | None:
        """One line of a result; None if it is unreadable."""
        try:
            result = json.loads(line)
        except ValueError:
            return None
        name, status = value_at(result, "custom_id"), value_at(result, "response", "status_code")
        if not isinstance(name, str):
            return None
        body, error = value_at(result, "response", "body"), value_at(result, "error")
        if status == 200:
            try:
                return BatchText(name, self._model.read(body, 1).vectors[0])
            except ProviderError as invalid:
                return BatchText(name, None, str(invalid), is_rejected=True)
        words = self._quote(body or {"error": error})
        is_open = status is None and str(value_at(error, "code")).startswith(NOT_PROCESSED)
        return BatchText(name, None, words, is_rejected=not is_open)

    def _quote(self, reply: Any) -> str:
        return self._model.quote(json.dumps(reply))

    def _id(self, reply: Any) -> str:
        name = value_at(reply, "id")
        if not isinstance(name, str) or not name:
            raise Unreachable(
                f"{self._model.where} answered 200 without an id: {self._quote(reply)}"
            )
        return name

"""CSV files, with comma, tab or another delimiter; `csv_records.py` cuts them into records.

A record with too few or too many cells is rejected.
"""

from collections import Counter
from collections.abc import Iterator
from typing import ClassVar, Literal

import pyarrow as pa
from pydantic import field_validator

from embedding_pipelines.errors import SourceError
from embedding_pipelines.sources.base import ReadLog, SourceFile
from embedding_pipelines.sources.csv_records import Record, Splitter
from embedding_pipelines.sources.fields import Fields
from embedding_pipelines.sources.text import Text, TextSource, list_suffixes, open_text

_LIKELY_DELIMITERS = ";\t|,"


class Csv(TextSource):
    """One document per record; the first line names the columns; `source_row` is the line.

    `delimiter`: one ASCII character; by default a tab in a `.tsv` file and else a comma.
    """

    kind: Literal["csv"] = "csv"
    suffixes: ClassVar[tuple[str, ...]] = list_suffixes(".csv", ".tsv")
    delimiter: str | None = None

    @field_validator("delimiter")
    @classmethod
    def _check_delimiter(cls, value: str | None) -> str | None:
        if value is not None and (len(value) != 1 or not value.isascii() or value in '"\r\n'):
            raise ValueError(
                f"{value!r} cannot separate cells; use one ASCII character such as ';' or a tab"
            )
        return value

    def read(self, file: SourceFile, log: ReadLog) -> Iterator[pa.RecordBatch]:
        """See Source.read. A quote that is not closed costs the line that it stands on."""
        text = open_text(file, self.encoding, log)
        delimiter = self.delimiter or ("\t" if ".tsv" in file.path.suffixes[-2:] else ",")
        fields = Fields(self, file, log, text.raw, text.encoding)
        names: list[str] = []
        for record in Splitter(delimiter).records(text):
            line, data, cells = record
            if not names:
                names = self._header(record, text)
                positions = [names.index(column) for column in self.columns]
            elif cells is None:
                reason = "a quote opens on this line and is not closed where a cell ends"
                fields.reject(line, reason, data)
            elif len(cells) != len(names):
                fields.reject(line, f"expected {len(names)} columns, got {len(cells)}", data)
            else:
                yield from fields.append(line, [cells[at] for at in positions], data, len(data))
        if not names:  # a half-written file must not empty the store
            raise SourceError(
                f"{file.name}: the file is empty, it has no header. Write it whole and then rename "
                "it into place; for no records, leave the header in it."
            )
        yield from fields.flush()

    def _header(self, record: Record, text: Text) -> list[str]:
        """The column names. Raises SourceError if they are not to be read, or not those needed."""
        where = f"{text.file.name}:{record.line}"
        if record.cells is None:
            raise SourceError(f"{where}: a quote in the header is not closed. Close it.")
        try:
            names = [cell.decode() for cell in record.cells]
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{where}: the header is not valid {text.encoding}. Set source.encoding."
            ) from error
        count = Counter(names)
        for column in self.columns:
            if count[column] > 1:
                raise SourceError(
                    f"{where}: {count[column]} columns are named {column!r}. Rename all but one."
                )
            if not count[column]:
                whole = names[0] if len(names) == 1 else ""
                likely = next((other for other in _LIKELY_DELIMITERS if other in whole), None)
                hint = f" Is the delimiter {likely!r}? Then set source.delimiter." if likely else ""
                raise self.missing_column_error(where, column, names, hint)

        return names

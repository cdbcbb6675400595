"""There is something to search."""

from embedding_pipelines.errors import counted
from embedding_pipelines.quality.base import Candidate, Check, Outcome


class TableHasRows(Check):
    effect = "warn"  # one that was full before is blocked by `not_worse_than_live`

    def evaluate(self, candidate: Candidate) -> Outcome:
        rows, records, files = candidate.rows, candidate.source_rows, candidate.source_files
        statistics = {"rows": rows, "records": records, "files": files}
        if rows:
            return self.outcome(True, f"The table has {counted(rows, 'row')}.", statistics)
        rejected = f" ({candidate.rejected_records:,} rejected)"
        rejected = rejected if candidate.rejected_records else ""
        reason = f"none of {counted(records, 'record')} has a text: set source.text to the fields that do"
        if not records:
            reason = (
                f"the source gave no record{rejected} from {counted(files, 'file')}: see whether its path "
                "names the right ones, and whether they hold more than a header"
            )
        return self.outcome(
            False, f"The table is empty, so searches find nothing; {reason}.", statistics
        )

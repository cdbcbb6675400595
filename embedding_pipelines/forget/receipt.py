"""What a forgetting leaves behind."""

from dataclasses import dataclass, field


@dataclass
class Receipt:
    """What was erased and what was looked at afterwards; no text, no id. `left` names files of the
    pipeline that hold a text still, relative to the warehouse: with any of them it has failed."""

    pipeline: str
    at: str  # ISO 8601, UTC
    documents: int = 0  # that the command names, or that stand in the files it names
    hashes: list[str] = field(default_factory=list)  # of their ids, as in the list of forgotten
    release: int | None = None  # that is live now
    removed_releases: list[int] = field(default_factory=list)
    erased: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    path: str = ""  # of this receipt

"""How far a load has come, kept beside nothing of the platform's: an optimisation, never the truth.

Up to the frontier every row is settled: on the platform, or rejected. A checkpoint is believed only
for the same ledger, the same mapping and an unchanged beginning of the file, and only if the last
rows before it are on the platform; without one, every row is simply posted again, to no effect.
"""

import hashlib
import os
from collections import OrderedDict, deque
from pathlib import Path

import msgspec

from control_plane.load.errors import SourceUnreadable
from control_plane.load.source import Record

LAYOUT = 1
REJECTED_LINES_MAX = 10_000
"""With more rejects than this the frontier stays where it is."""

SAMPLE_ROWS = 32
"""As many of the last rows are looked up before a checkpoint is believed. A platform restored from
a backup has lost its last writes, so the last ones tell."""


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    layout: int
    ledger_id: str
    mapping_sha256: str
    lines: int
    """Lines of the file up to the frontier."""
    prefix_sha256: str
    """Of the file's text up to the frontier."""
    rejected_lines: tuple[int, ...]
    """First lines of rows that were rejected; a resumed run tries them again."""
    sample: tuple[str, ...]
    """External ids of the last rows before the frontier."""


class _Row:
    __slots__ = ("external_id", "is_settled", "last_line", "prefix")

    def __init__(self, record: Record) -> None:
        self.last_line = record.last_line
        self.prefix = record.prefix
        self.external_id: str | None = None
        self.is_settled = False


class Frontier:
    """Rows are begun in order and settled in any; the frontier is before the first unsettled."""

    def __init__(self, resumed: Checkpoint | None) -> None:
        self.lines = resumed.lines if resumed else 0
        self._prefix = resumed.prefix_sha256 if resumed else ""
        self._rejected = set(resumed.rejected_lines) if resumed else set()
        self._sample = deque(resumed.sample if resumed else (), maxlen=SAMPLE_ROWS)
        self._rows: OrderedDict[int, _Row] = OrderedDict()
        self._is_frozen = False

    @property
    def outstanding(self) -> int:
        """Rows begun that are not behind the frontier."""
        return len(self._rows)

    def begin(self, record: Record) -> None:
        # Once a row was passed over, the frontier can never move beyond it.
        self._is_frozen = self._is_frozen or len(self._rejected) >= REJECTED_LINES_MAX
        if record.last_line > self.lines and not self._is_frozen:
            self._rows[record.first_line] = _Row(record)

    def settle(self, record: Record, external_id: str | None) -> None:
        """The row is on the platform under that external id, or rejected (None)."""
        row = self._rows.get(record.first_line)
        if row is None:
            # An earlier reject that was tried again, or a row that was passed over.
            if external_id is not None:
                self._rejected.discard(record.first_line)
            return
        if external_id is None:
            self._rejected.add(record.first_line)
        row.is_settled, row.external_id = True, external_id
        while self._rows and (first := next(iter(self._rows.values()))).is_settled:
            self._rows.popitem(last=False)
            self.lines, self._prefix = first.last_line, first.prefix.hex()
            if first.external_id is not None:
                self._sample.append(first.external_id)

    def checkpoint(self, ledger_id: str, mapping_sha256: str) -> Checkpoint:
        return Checkpoint(
            layout=LAYOUT,
            ledger_id=ledger_id,
            mapping_sha256=mapping_sha256,
            lines=self.lines,
            prefix_sha256=self._prefix,
            rejected_lines=tuple(sorted(line for line in self._rejected if line <= self.lines)),
            sample=tuple(self._sample),
        )


def checkpoint_path(folder: Path, organization_id: str, dataset: str, file: Path) -> Path:
    """Where the checkpoint of this load is kept."""
    named = msgspec.json.encode((organization_id, dataset, str(file.absolute())))
    return folder / f"{dataset}-{hashlib.sha256(named).hexdigest()[:16]}.json"


def default_state_folder() -> Path:
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "cloister" / "load"


def read_checkpoint(path: Path, ledger_id: str, mapping_sha256: str) -> Checkpoint | None:
    """The checkpoint at `path`, or None if there is none for this ledger and mapping."""
    try:
        read = msgspec.json.decode(path.read_bytes(), type=Checkpoint)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None  # absent or damaged: the load does without, it is only slower
    if (read.layout, read.ledger_id, read.mapping_sha256) != (LAYOUT, ledger_id, mapping_sha256):
        return None
    return read


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the file at once; a reader sees the old or the new one. Raises SourceUnreadable."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.new")
        beside.write_bytes(msgspec.json.encode(checkpoint))
        beside.replace(path)
    except OSError as exc:
        raise SourceUnreadable(f"{path} cannot be written: {exc.strerror}") from exc

"""What a verification is asked for, and what it found."""

from collections.abc import Callable

import msgspec

VERIFICATION_S_MAX = 3600.0
"""No report comes later than this."""

DIFFERENCES_MAX = 100
DIFFERENCES_PER_CHECK_MAX = 20
"""So that one broken table does not hide what else is wrong."""


class Difference(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Two places that should agree, and do not."""

    check: str
    message: str
    ledger_account_id: str | None = None
    """The account concerned; several are separated by commas. None: no account is."""
    expected: str | None = None
    """What the other path says: the entries, the journal, the chain."""
    found: str | None = None


class VerificationReport(msgspec.Struct, frozen=True, kw_only=True):
    tenant: str
    cell: str
    ok: bool
    accounts: int
    entries: int
    """All that were ever written, discarded ones included."""
    transactions: int
    segments: int
    last_seq: int
    """The tenant's sequence at the moment that was verified."""
    differences: tuple[Difference, ...]
    """Bounded; one that is there always makes `ok` false."""
    seconds: float


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Whose ledger to verify, and where."""

    dsn: str
    """Of the auditor, in the cell's database."""
    tenant_id: str
    tenant: str
    cell: str


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """A report, or the words why there is none: one of the three."""

    report: VerificationReport | None = None
    stopped: str | None = None
    unavailable: str | None = None


class Progress(msgspec.Struct, frozen=True):
    """Where a verification stands."""

    step: str
    done: int = 0
    total: int = 0
    """0: not known."""


OnProgress = Callable[[Progress], None]


class Findings:
    """Collects differences, bounded in total and per check."""

    def __init__(self) -> None:
        self._by_check: dict[str, list[Difference]] = {}
        self._omitted: dict[str, int] = {}

    def add(self, difference: Difference) -> None:
        found = self._by_check.setdefault(difference.check, [])
        if len(found) < DIFFERENCES_PER_CHECK_MAX:
            found.append(difference)
        else:
            self._omitted[difference.check] = self._omitted.get(difference.check, 0) + 1

    def note(
        self,
        check: str,
        message: str,
        expected: object = None,
        found: object = None,
        account: str | None = None,
    ) -> None:
        self.add(
            Difference(
                check=check,
                message=message,
                ledger_account_id=account,
                expected=None if expected is None else str(expected),
                found=None if found is None else str(found),
            )
        )

    def differences(self) -> tuple[Difference, ...]:
        collected = []
        for check, found in self._by_check.items():
            collected.extend(found)
            if check in self._omitted:
                message = f"and at least {self._omitted[check]} more of {check}"
                collected.append(Difference(check=check, message=message))
        return tuple(collected[:DIFFERENCES_MAX])

"""Errors of the benchmarks.

BenchmarkError
├── Skipped      a part cannot run on this machine; the reason is shown in the table
├── NotReady     a process did not become ready before its deadline, or died
└── Wrong        a run broke an invariant or got unexpected answers: its figures are worthless
    └── Refused  a limit or deadline was met, nothing else: the machine stood still for too long
"""


class BenchmarkError(Exception):
    """A benchmark could not give a figure."""


class Skipped(BenchmarkError):
    """Something the part needs is absent on this machine."""


class NotReady(BenchmarkError):
    """A process did not become ready before its deadline, or died."""


class Wrong(BenchmarkError):
    """A run broke an invariant or got unexpected answers."""


class Refused(Wrong):
    """A run met a limit (429, 503) or its deadline; all else went as expected."""

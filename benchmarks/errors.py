"""Errors of the benchmarks.

BenchmarkError
├── Skipped      a part cannot run on this machine; the reason is shown in the table
├── NotReady     a process did not become ready before its deadline, or died
└── Wrong        a run broke an invariant or got unexpected answers: its figures are worthless
"""


class BenchmarkError(Exception):
    """A benchmark could not give a figure."""


class Skipped(BenchmarkError):
    """Something the part needs is absent on this machine."""


class NotReady(BenchmarkError):
    """A process did not become ready before its deadline, or died."""


class Wrong(BenchmarkError):
    """A run broke an invariant or got unexpected answers."""

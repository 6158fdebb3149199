"""Replaces itself with a command that gets a signal when its parent dies.

`python tether.py SIGNAL PARENT_PID COMMAND...`; run as a script by path, without site packages,
so it starts in some milliseconds and costs nothing afterwards: exec keeps the process id. The
kernel sends SIGNAL when the *thread* that started the process ends, so callers start children from
a thread that lives as long as the children shall (the main thread).
"""

import ctypes
import os
import sys
from typing import Final

PR_SET_PDEATHSIG: Final = 1


def main(arguments: list[str]) -> None:
    signal_number, parent, command = int(arguments[0]), int(arguments[1]), arguments[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above; then no signal would ever come.
    if os.getppid() != parent:
        raise SystemExit(f"the parent {parent} is gone; not starting {command[0]}")
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])

"""One verification in a process of its own: a `Job` in JSON on a line of stdin, an `Outcome` in
JSON on stdout. It stops when its stdin ends: by request, or because whoever asked is not there any
more.

Of lower priority than those who serve. Its DSN holds a password, which no list of processes shows.
"""

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Final

import msgspec

from control_plane.errors import CellUnavailable
from control_plane.verify.errors import VerificationStopped
from control_plane.verify.report import Job, Outcome
from control_plane.verify.verification import Verification

NICENESS: Final = 19
STOP_AGAIN_S: Final = 0.1
STOP_S_MAX: Final = 5.0
"""A database that does not answer is not waited for: nobody is there any more to end this."""


def main() -> None:
    yield_to_others()
    # Without a buffer, and so without its lock: the thread that reads on may be at it at the end.
    with open(sys.stdin.fileno(), "rb", buffering=0, closefd=False) as requests:
        job = msgspec.json.decode(requests.readline(), type=Job)
        verification = Verification(
            job.dsn, tenant_id=job.tenant_id, tenant=job.tenant, cell=job.cell
        )
        waiting = threading.Thread(target=stop_at_the_end, args=(requests, verification))
        waiting.daemon = True
        waiting.start()
        sys.stdout.buffer.write(msgspec.json.encode(outcome_of(verification)))


def yield_to_others() -> None:
    os.nice(NICENESS)
    # Where the kernel groups processes by session, niceness counts within the session only.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def stop_at_the_end(requests: IO[bytes], verification: Verification) -> None:
    requests.read()
    deadline_s = time.monotonic() + STOP_S_MAX
    while time.monotonic() < deadline_s:
        # Again and again: a statement is cancelled only if it has begun.
        verification.stop()
        time.sleep(STOP_AGAIN_S)
    os._exit(1)


def outcome_of(verification: Verification) -> Outcome:
    try:
        return Outcome(report=verification.run())
    except VerificationStopped as exc:
        return Outcome(stopped=str(exc))
    except CellUnavailable as exc:
        return Outcome(unavailable=str(exc))


if __name__ == "__main__":
    main()

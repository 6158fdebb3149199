"""Sequencers in processes of their own, to be killed: run as a script by `test_sequencer_crashes`.

The script imports everything once and then forks one process per line on its standard input; it
prints the process id, waits for its death, and prints how it died. A forked process opens a
sequencer, warms up, says so on the pipe of acknowledgements, waits for a byte on the other pipe,
and submits; each command that is acknowledged to it is acknowledged on the pipe at once.
"""

import asyncio
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from cell import store
from cell.batch import Idempotency
from cell.ledger.commands import CreateLedgerTransaction, EntryDraft
from cell.ledger.model import Direction, Status
from cell.sequencer import Sequencer
from cell.sequencer_limits import SequencerLimits

API_KEY = "00000000-0000-0000-0000-000000000007"


def command(accounts: list[str], name: str) -> CreateLedgerTransaction:
    """Every account is in every transaction: any batch is on top of all before."""
    half = len(accounts) // 2
    return CreateLedgerTransaction(
        entries=tuple(
            EntryDraft(
                ledger_account_id=account,
                direction=Direction.DEBIT if number < half else Direction.CREDIT,
                amount=3,
            )
            for number, account in enumerate(accounts)
        ),
        status=Status.POSTED,
        external_id=name,
    )


async def work(run: dict[str, Any], go: int, acknowledged: int) -> None:
    limits = SequencerLimits(batch_size=run["batch_size"])
    sequencer = Sequencer(store.Store(run["dsn"]), limits)
    await sequencer.open()
    running = asyncio.create_task(sequencer.run())

    async def submit(client: int, numbers: Iterable[int]) -> None:
        for number in numbers:
            name = f"{run['name']}-{client}-{number}"
            idempotency = Idempotency(api_key_id=API_KEY, key=name)
            await sequencer.submit(run["tenant_id"], command(run["accounts"], name), idempotency)
            if number:
                os.write(acknowledged, f"{name}\n".encode())

    # Number 0 of each is only to have statements prepared and accounts in memory.
    clients = range(run["clients"])
    await asyncio.gather(*(submit(client, [0]) for client in clients))
    os.write(acknowledged, b"ready\n")
    os.read(go, 1)
    numbers = range(1, run["each"] + 1)
    await asyncio.gather(*(submit(client, numbers) for client in clients))
    os.write(acknowledged, b"done\n")
    sequencer.stop()
    await running


def main() -> None:
    go, acknowledged = int(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            asyncio.run(work(json.loads(line), go, acknowledged))
            os._exit(0)
        print(pid, flush=True)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    main()

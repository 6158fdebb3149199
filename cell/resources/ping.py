"""GET /api/ping: are the credentials good and the cell there?"""

from typing import Final

import msgspec

from cell.answers import Answer, render
from cell.calls import Call, Route


class PingView(msgspec.Struct, frozen=True):
    ping: str


_PONG: Final = Answer(200, render(PingView("pong")))


async def ping(call: Call) -> Answer:
    return _PONG


ROUTES: Final = (Route("GET", "/api/ping", ping, "Ping", PingView),)

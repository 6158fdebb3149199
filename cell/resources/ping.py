"""GET /api/ping: are the credentials good and the cell there?"""

from typing import Final

from cell.answers import Answer, render
from cell.calls import Call, Route

_PONG: Final = Answer(200, render({"ping": "pong"}))


async def ping(call: Call) -> Answer:
    return _PONG


ROUTES: Final = (Route("GET", "/api/ping", ping),)

"""Bearer tokens of the HTTP API: who a request comes from. Pure."""

import hashlib
import hmac
from enum import StrEnum

from control_plane.errors import Forbidden, Unauthenticated

CREDENTIAL_CHARS_MAX = 4096


class Role(StrEnum):
    OPERATOR = "operator"
    """May do everything."""
    ROUTER = "router"
    """May read the routing table."""


class Tokens:
    """The digests of the two tokens; the tokens themselves are not kept."""

    def __init__(self, *, operator: str, router: str) -> None:
        self._digests = {Role.OPERATOR: _digest(operator), Role.ROUTER: _digest(router)}

    def role_of(self, authorization: str | None) -> Role:
        """Raises Unauthenticated. Takes the same time for every wrong token.

        Digests have one length, and both are compared whatever the first comparison gave.
        """
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential:
            raise Unauthenticated("send `Authorization: Bearer <operator token>`")
        given = _digest(credential[:CREDENTIAL_CHARS_MAX].strip())
        matches = [
            role for role, digest in self._digests.items() if hmac.compare_digest(given, digest)
        ]
        if not matches:
            raise Unauthenticated("the bearer token is not one of this platform")
        return matches[0]

    def require(self, authorization: str | None, *allowed: Role) -> Role:
        """The caller's role if it is allowed; raises Unauthenticated or Forbidden."""
        role = self.role_of(authorization)
        if role not in allowed:
            raise Forbidden(f"the token of a {role} is not valid here")
        return role


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).digest()

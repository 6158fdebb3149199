"""Bearer tokens. Method: headers in, the role or the error out."""

import pytest

from control_plane.errors import Forbidden, Unauthenticated
from control_plane.tokens import Role, Tokens

TOKENS = Tokens(operator="operator-token", router="router-token")


@pytest.mark.parametrize(
    ("header", "role"),
    [
        ("Bearer operator-token", Role.OPERATOR),
        ("bearer operator-token", Role.OPERATOR),
        ("Bearer router-token", Role.ROUTER),
    ],
)
def test_the_role_of_a_token(header: str, role: Role) -> None:
    assert TOKENS.role_of(header) is role


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Basic operator-token",
        "operator-token",
        "Bearer operator-toke",
        "Bearer operator-token2",
        "Bearer \udcff",
        "Bearer " + "x" * 100_000,
    ],
)
def test_what_is_no_token(header: str | None) -> None:
    with pytest.raises(Unauthenticated):
        TOKENS.role_of(header)


def test_a_router_is_no_operator() -> None:
    with pytest.raises(Forbidden, match="token of a router is not valid here"):
        TOKENS.require("Bearer router-token", Role.OPERATOR)
    assert TOKENS.require("Bearer router-token", Role.OPERATOR, Role.ROUTER) is Role.ROUTER


def test_tokens_are_not_kept() -> None:
    assert b"operator-token" not in repr(vars(TOKENS)).encode()

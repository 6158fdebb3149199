"""Method: bytes in, value or error out, in the order of the two passes: what is no JSON, what is
JSON that others would settle silently, what does not fit the type.
"""

import time
from typing import Annotated

import msgspec
import pytest

from cell.errors import ApiError, InvalidRequest, TooLarge, Unprocessable
from cell.strict_json import DEPTH_MAX, VALUES_MAX, decode


class Item(msgspec.Struct):
    amount: int
    label: str = ""
    metadata: dict[str, str] = {}


class Body(msgspec.Struct):
    name: str
    items: list[Item] = []
    flag: bool = False
    labels: dict[Annotated[str, msgspec.Meta(max_length=3)], str] = {}


def test_well_formed_body() -> None:
    body = decode(b' {"name": "\\u00e9\\ud83d\\ude00", "items": [{"amount": 7}], "more": 1} ', Body)
    assert body == Body(name="é😀", items=[Item(amount=7)])


@pytest.mark.parametrize(
    "amount", [0, 1, 2**63, 2**64, 99999999999999999999, 10**36 - 1, 10**40, -(10**40)]
)
def test_integers_are_exact(amount: int) -> None:
    text = f'{{"name": "n", "items": [{{"amount": {amount}}}]}}'
    assert decode(text.encode(), Body).items[0].amount == amount


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b'{"name": "n"}{}',
        b'{"name": "n"} x',
        b"{'name': 'n'}",
        b'{"name": "n"} // comment',
        b'{"name": "n",}',
        b'{"name": "\x01"}',
        b'{"name": 007}',
        b'{"name": +1}',
        b'{"name": "n", "items": [{"amount": ' + b"9" * 5000 + b"}]}",
        # Encodings
        b"\xef\xbb\xbf{}",
        '{"name": "n"}'.encode("utf-16"),
        b'{"name": "\xff"}',
        b'{"name": "\xc0\x80"}',
        b'{"name": "\xed\xa0\x80"}',
        # What lenient parsers settle silently
        b'{"name": NaN}',
        b'{"name": Infinity}',
        b'{"name": -Infinity}',
        b'{"name": "n", "items": [{"amount": 1e400}]}',
        b'{"name": "n", "x": [-1e400]}',
        b'{"name": "n", "x": ' + b"9" * 400 + b".0}",
        b'{"name": "n", "items": [{"amount": -0}]}',
        b'{"name": "a", "name": "b"}',
        b'{"name": "n", "items": [{"amount": 1, "amount": 2}]}',
        b'{"name": "n", "unknown": {"a": 1, "\\u0061": 2}}',
        b'{"name": "\\u0000"}',
        b'{"na\\u0000me": "n"}',
        b'{"name": "\\ud800"}',
        b'{"name": "\\udc00"}',
        b'{"name": "\\ude00\\ud83d"}',
        b'{"name": "\\ud83d\\\\ude00"}',
        b'{"name": "\\ud83d \\ude00"}',
        b'{"name": "n", "x": ' + b"[" * DEPTH_MAX + b"]" * DEPTH_MAX + b"}",
    ],
)
def test_ill_formed_body(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        decode(body, Body)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "\\\\u0000"}',
        b'{"name": "\\\\ud800"}',
        b'{"name": "-0", "x": ": -0,"}',
        b'{"name": "1e400", "x": [1e308, 1e-400, 0e400]}',
        b'{"name": "2024-01-02"}',
        b'{"name": "' + b"[" * 50 + b'"}',
        b'{"name": "n", "x": [' + b"{}," * 100 + b"{}]}",
        b'{"name": "n", "x": ' + b"[" * (DEPTH_MAX - 1) + b"]" * (DEPTH_MAX - 1) + b"}",
    ],
)
def test_body_that_only_looks_ill_formed(body: bytes) -> None:
    assert decode(body, Body).name


@pytest.mark.parametrize(
    ("body", "code", "parameter"),
    [
        (b"[]", "parameter_invalid", None),
        (b"null", "parameter_invalid", None),
        (b"{}", "parameter_missing", "name"),
        (b'{"name": null}', "parameter_invalid", "name"),
        (b'{"name": 1}', "parameter_invalid", "name"),
        (b'{"name": "n", "flag": 1}', "parameter_invalid", "flag"),
        (b'{"name": "n", "flag": "true"}', "parameter_invalid", "flag"),
        (b'{"name": "n", "items": {}}', "parameter_invalid", "items"),
        (b'{"name": "n", "items": [{}]}', "parameter_missing", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": 1.0}]}', "parameter_invalid", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": 1e2}]}', "parameter_invalid", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": 1e308}]}', "parameter_invalid", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": -0.0}]}', "parameter_invalid", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": true}]}', "parameter_invalid", "items[0].amount"),
        (b'{"name": "n", "items": [{"amount": "7"}]}', "parameter_invalid", "items[0].amount"),
        (
            b'{"name": "n", "items": [{"amount": 1}, {"amount": 1, "metadata": {"k.`$": 1}}]}',
            "parameter_invalid",
            "items[1].metadata",
        ),
        (b'{"name": "n", "labels": {"long": "v"}}', "parameter_invalid", "labels"),
    ],
)
def test_body_of_another_type(body: bytes, code: str, parameter: str | None) -> None:
    with pytest.raises(Unprocessable) as refused:
        decode(body, Body)
    assert (refused.value.code, refused.value.parameter) == (code, parameter)


QUADRATIC_S = 10.0
"""Work that grows with the square of the body takes longer, in proportion to it far less."""


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" + b"1," * (VALUES_MAX + 1) + b"1]",
        b"{" + b",".join(b'"%d":1' % n for n in range(1_000_000)) + b"}",
        b"{" + b",".join(b'"%d":1' % n for n in range(99_000)) + b',"98999":1}',
        b'{"name": "' + b"\\u00e9" * 1_000_000 + b'"}',
        b'{"name": "' + b'[\\"' * 1_000_000,
        b'{"name": "' + b"-0 " * 1_000_000 + b'"}',
        b'{"name": 1.' + b"1" * 10_000_000 + b"}",
        b'{"name": ' + b"1" * 10_000_000 + b".1}",
        b'{"name": ' + b"1" * 10_000_000 + b"}",
        b'{"name": "' + b"x" * 10_000_000,
        b'"' * 10_000_000,
        b" " * 10_000_000,
        b'{"name": 1, "x": ["' + b'\\"' * 90_000 + b'", ' + b"[]," * 90_000 + b"[]]}",
    ],
    ids=lambda body: f"{body[:12]!r} {len(body)}",
)
def test_hostile_body_is_refused_without_much_work(body: bytes) -> None:
    started_s = time.process_time()
    with pytest.raises(ApiError) as refused:
        decode(body, Body)
    assert isinstance(refused.value, InvalidRequest | TooLarge | Unprocessable)
    assert time.process_time() - started_s < QUADRATIC_S

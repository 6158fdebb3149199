"""The expression of a custom index: parsed into tokens, and composed again as safe SQL.

cells.yaml holds index expressions as people write them, such as `metadata jsonb_path_ops`,
`effective_at DESC, id` or `(metadata->>'region')`. They are never pasted into a statement: each
token is recognised here and composed again, names as quoted identifiers and texts as literals. What
is not recognised (`;`, comments, `$`, subqueries) is an error, so none can end its statement.

Pure. `topology.py` validates with it, `tuning.py` composes with it.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from psycopg import sql

EXPRESSION_CHARS_MAX = 1000


class Kind(StrEnum):
    NAME = "name"
    """A column, function, operator class or type: composed as a quoted identifier."""
    KEYWORD = "keyword"
    """A word of SQL's grammar, composed as it is."""
    TEXT = "text"
    """A literal in single quotes."""
    NUMBER = "number"
    SYMBOL = "symbol"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    kind: Kind
    text: str
    """Names and keywords in lower case, texts without their quotes."""


class ExpressionInvalid(ValueError):
    """The text is not an expression that an index may have; the message says why."""


_PATTERN = re.compile(
    r"""\s*(?:
      (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<text>'(?:[^']|'')*')
    | (?P<number>[0-9]+(?:\.[0-9]+)?)
    | (?P<symbol>::|->>|->|\#>>|\#>|\|\||<>|<=|>=|[-+*/%=<>(),])
    )""",
    re.VERBOSE,
)

# Composed as constants: they are grammar, and quoting them would make columns of them.
_KEYWORDS = MappingProxyType(
    {
        "asc": sql.SQL("ASC"),
        "desc": sql.SQL("DESC"),
        "nulls": sql.SQL("NULLS"),
        "first": sql.SQL("FIRST"),
        "last": sql.SQL("LAST"),
        "is": sql.SQL("IS"),
        "not": sql.SQL("NOT"),
        "null": sql.SQL("NULL"),
        "and": sql.SQL("AND"),
        "or": sql.SQL("OR"),
        "true": sql.SQL("TRUE"),
        "false": sql.SQL("FALSE"),
        "coalesce": sql.SQL("COALESCE"),
        "nullif": sql.SQL("NULLIF"),
        # Types whose SQL name is not the name of a row in pg_type.
        "bigint": sql.SQL("bigint"),
        "integer": sql.SQL("integer"),
        "int": sql.SQL("integer"),
        "smallint": sql.SQL("smallint"),
        "boolean": sql.SQL("boolean"),
        "real": sql.SQL("real"),
    }
)
_SYMBOLS = MappingProxyType(
    {
        "::": sql.SQL("::"),
        "->>": sql.SQL("->>"),
        "->": sql.SQL("->"),
        "#>>": sql.SQL("#>>"),
        "#>": sql.SQL("#>"),
        "||": sql.SQL("||"),
        "<>": sql.SQL("<>"),
        "<=": sql.SQL("<="),
        ">=": sql.SQL(">="),
        "-": sql.SQL("-"),
        "+": sql.SQL("+"),
        "*": sql.SQL("*"),
        "/": sql.SQL("/"),
        "%": sql.SQL("%"),
        "=": sql.SQL("="),
        "<": sql.SQL("<"),
        ">": sql.SQL(">"),
        "(": sql.SQL("("),
        ")": sql.SQL(")"),
        ",": sql.SQL(","),
    }
)
_FORBIDDEN = frozenset({"select", "from", "where", "with", "case", "over", "in", "exists", "array"})
_NAME_CHARS_MAX = 63


def parse_expression(text: str) -> tuple[Token, ...]:
    """The tokens of an index expression. Raises ExpressionInvalid, saying why."""
    if not text.strip():
        raise ExpressionInvalid("it is empty")
    if len(text) > EXPRESSION_CHARS_MAX:
        raise ExpressionInvalid(f"it is above {EXPRESSION_CHARS_MAX} characters")
    if "--" in text or "/*" in text:
        raise ExpressionInvalid("a comment cannot stand in it")
    tokens = []
    position = 0
    end = len(text.rstrip())
    while position < end:
        match = _PATTERN.match(text, position)
        if match is None:
            rest = text[position:].lstrip()
            raise ExpressionInvalid(f"{rest[:12]!r} cannot stand in it")
        tokens.append(_token(match))
        position = match.end()
    _check_shape(tokens)
    return tuple(tokens)


def _token(match: re.Match[str]) -> Token:
    kind, text = match.lastgroup, match[match.lastgroup or 0]
    if kind == "name":
        word = text.lower()
        if word in _FORBIDDEN:
            raise ExpressionInvalid(f"{text!r} cannot stand in it")
        if len(word) > _NAME_CHARS_MAX:
            raise ExpressionInvalid(f"the name {text[:20]}… is above {_NAME_CHARS_MAX} characters")
        return Token(kind=Kind.KEYWORD if word in _KEYWORDS else Kind.NAME, text=word)
    if kind == "text":
        inner = text[1:-1].replace("''", "'")
        if "\0" in inner:
            raise ExpressionInvalid("it contains a NUL character")
        return Token(kind=Kind.TEXT, text=inner)
    return Token(kind=Kind.NUMBER if kind == "number" else Kind.SYMBOL, text=text)


def _check_shape(tokens: list[Token]) -> None:
    """Parentheses match, no item of the list is empty, and a name stands somewhere."""
    depth = 0
    previous = ","
    for token in tokens:
        symbol = token.text if token.kind is Kind.SYMBOL else ""
        if symbol == "," and previous in (",", "("):
            raise ExpressionInvalid("an item between commas is empty")
        depth += {"(": 1, ")": -1}.get(symbol, 0)
        if depth < 0:
            raise ExpressionInvalid("a closing parenthesis has no opening one")
        previous = symbol
    if depth:
        raise ExpressionInvalid("an opening parenthesis is never closed")
    if previous == ",":
        raise ExpressionInvalid("an item between commas is empty")
    if not any(token.kind is Kind.NAME for token in tokens):
        raise ExpressionInvalid("it names no column")


def compose_expression(tokens: tuple[Token, ...]) -> sql.Composed:
    """The SQL of the tokens: what stands between the parentheses of CREATE INDEX."""
    return sql.SQL(" ").join([_compose(token) for token in tokens])


def canonical_expression(tokens: tuple[Token, ...]) -> str:
    """One spelling for every way to write the same tokens; two indexes with it are the same."""
    return " ".join(f"{token.kind}:{token.text!r}" for token in tokens)


def _compose(token: Token) -> sql.Composable:
    match token.kind:
        case Kind.NAME:
            return sql.Identifier(token.text)
        case Kind.KEYWORD:
            return _KEYWORDS[token.text]
        case Kind.TEXT:
            return sql.Literal(token.text)
        case Kind.NUMBER:
            return sql.Literal(float(token.text) if "." in token.text else int(token.text))
        case Kind.SYMBOL:
            return _SYMBOLS[token.text]

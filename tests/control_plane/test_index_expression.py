"""Index expressions. Method: texts people write, composed again; texts that must be refused."""

import pytest

from control_plane.index_expression import (
    ExpressionInvalid,
    canonical_expression,
    compose_expression,
    parse_expression,
)


@pytest.mark.parametrize(
    ("text", "composed"),
    [
        ("id", '"id"'),
        ("metadata jsonb_path_ops", '"metadata" "jsonb_path_ops"'),
        ("effective_at_us DESC, id", '"effective_at_us" DESC , "id"'),
        ("(metadata->>'region')", "( \"metadata\" ->> 'region' )"),
        ("lower(external_id) nulls first", '"lower" ( "external_id" ) NULLS FIRST'),
        ("((metadata->>'n')::bigint)", "( ( \"metadata\" ->> 'n' ) :: bigint )"),
        ("(metadata->>'it''s')", "( \"metadata\" ->> 'it''s' )"),
        ("coalesce(posted_at_us, 0)", 'COALESCE ( "posted_at_us" , 0 )'),
        ("(version % 10)", '( "version" % 10 )'),
    ],
)
def test_what_is_composed(text: str, composed: str) -> None:
    assert compose_expression(parse_expression(text)).as_string() == composed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("id; DROP TABLE journal", "'; DROP TABLE' cannot"),
        ("id) WHERE (true", "'WHERE' cannot"),
        ("id), (seq", "no opening one"),
        ("(id", "never closed"),
        ("id,, seq", "is empty"),
        ("id,", "is empty"),
        ("lower(, id)", "is empty"),
        ("id -- comment", "comment"),
        ("id /* x */", "comment"),
        ("$$x$$", "cannot"),
        ('"id"', "cannot"),
        ("'only text'", "names no column"),
        ("(select 1)", "'select' cannot"),
        ("id\x00", "cannot"),
        ("é", "cannot"),
        ("a" * 64, "above 63"),
        ("id, " * 400 + "id", "above 1000"),
        ("'open", "cannot"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ExpressionInvalid, match=reason):
        parse_expression(text)


def test_spelling_does_not_matter() -> None:
    spellings = ["effective_at_us DESC,id", "effective_at_us  desc , ID"]
    assert len({canonical_expression(parse_expression(text)) for text in spellings}) == 1

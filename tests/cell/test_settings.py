"""Method: environments, complete, lacking one variable, with one impossible value."""

import pytest

from cell.errors import SettingsInvalid
from cell.settings import Address, Settings

COMPLETE = {
    "CLOISTER_CELL_NAME": "cell-a",
    "CLOISTER_CELL_LISTEN": "127.0.0.1:8101",
    "CLOISTER_CELL_OPERATOR_LISTEN": "[::1]:8102",
    "CLOISTER_CELL_OPERATOR_TOKEN": "tok-en",
    "CLOISTER_CELL_WRITER_DSN": "host=/tmp user=cloister_writer password=pass-word",
    "CLOISTER_CELL_READER_DSN": "postgresql://cloister_reader:pass-word@/cell",
}


def test_defaults() -> None:
    settings = Settings.from_environment({**COMPLETE, "CLOISTER_CELL_UNKNOWN": "x"})
    assert settings.name == "cell-a"
    assert settings.listen == Address("127.0.0.1", 8101)
    assert settings.operator_listen == Address("::1", 8102)
    assert str(settings.operator_listen) == "[::1]:8102"
    assert settings.owner_dsn is None
    assert (settings.pool_min, settings.pool_max) == (2, 8)
    assert (settings.sequencer_batch_size, settings.sequencer_linger_ms) == (1000, 0)
    assert (settings.webhook_secret, settings.webhook_private_targets) == (None, False)


def test_given() -> None:
    settings = Settings.from_environment(
        {
            **COMPLETE,
            "CLOISTER_CELL_OWNER_DSN": "host=/tmp user=cloister_owner",
            "CLOISTER_CELL_POOL_MAX": " 16 ",
            "CLOISTER_CELL_SEQUENCER_BATCH_SIZE": "1",
            "CLOISTER_CELL_SEQUENCER_LINGER_MS": "3",
            "CLOISTER_CELL_SEQUENCER_CACHE_ACCOUNTS": "",
            "CLOISTER_CELL_WEBHOOK_SECRET": "web-hook",
            "CLOISTER_CELL_WEBHOOK_PRIVATE_TARGETS": "true",
            "CLOISTER_CELL_SEQUENCER_ASYNC_LINGER_MS": "0",
        }
    )
    assert settings.owner_dsn == "host=/tmp user=cloister_owner"
    assert (settings.pool_max, settings.sequencer_batch_size) == (16, 1)
    assert (settings.sequencer_linger_ms, settings.sequencer_cache_accounts) == (3, 50_000)
    assert (settings.webhook_secret, settings.webhook_private_targets) == ("web-hook", True)
    assert "web-hook" not in repr(settings)
    assert (settings.sequencer_async_batch_size, settings.sequencer_async_linger_ms) == (500, 0)


def test_secrets_are_not_shown() -> None:
    shown = repr(Settings.from_environment(COMPLETE))
    assert "pass-word" not in shown
    assert "tok-en" not in shown


@pytest.mark.parametrize("name", COMPLETE)
@pytest.mark.parametrize("text", [None, "", "  "])
def test_missing(name: str, text: str | None) -> None:
    environment = {**COMPLETE, name: text or ""}
    with pytest.raises(SettingsInvalid, match=name):
        Settings.from_environment(environment)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LISTEN", "8101"),
        ("LISTEN", ":8101"),
        ("LISTEN", "localhost:"),
        ("LISTEN", "localhost:99999"),
        ("OPERATOR_LISTEN", "localhost:http"),
        ("WRITER_DSN", "pass-word with spaces"),
        ("READER_DSN", "nonsense=pass-word"),
        ("OWNER_DSN", "nonsense"),
        ("POOL_MIN", "0"),
        ("POOL_MIN", "9"),
        ("POOL_MAX", "-1"),
        ("POOL_MAX", "8.0"),
        ("POOL_MAX", "٨"),
        ("SEQUENCER_BATCH_SIZE", "many"),
        ("SEQUENCER_BATCH_SIZE", "1" * 30),
        ("SEQUENCER_LINGER_MS", "1001"),
        ("SEQUENCER_LINGER_MS", "-1"),
        ("SEQUENCER_QUEUE_COMMANDS_MAX", "0"),
        ("SEQUENCER_QUEUE_COMMANDS_PER_TENANT_MAX", "0"),
        ("SEQUENCER_CACHE_ACCOUNTS", "0"),
    ],
)
def test_impossible(name: str, text: str) -> None:
    with pytest.raises(SettingsInvalid, match=f"CLOISTER_CELL_{name}") as refused:
        Settings.from_environment({**COMPLETE, f"CLOISTER_CELL_{name}": text})
    assert "pass-word" not in str(refused.value)
    assert "\n" not in str(refused.value)

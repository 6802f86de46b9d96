"""The webhook's signature, body, secrets and settings. What receivers do to it: tests/integration."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from farandole.correlator.webhook import (
    Webhook,
    WebhookSettings,
    read_secrets,
    webhook,
    webhook_body,
    webhook_headers,
)
from farandole.errors import ConfigurationError
from farandole.settings import load_settings
from farandole.testing.deadline_action_conformance import overdue, stalled, timed_out

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FARANDOLE_")]:
        monkeypatch.delenv(name)


def secrets_file(directory: Path, *lines: str) -> Path:
    path = directory / "secrets"
    path.write_text("\n".join(lines))
    return path


def test_the_signature_is_that_of_standard_webhooks(tmp_path: Path) -> None:
    """The example of the libraries at github.com/standard-webhooks."""
    secrets = read_secrets(secrets_file(tmp_path, SECRET))
    headers = webhook_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', secrets)
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_a_secret_is_replaced_both_sign(tmp_path: Path) -> None:
    newer = "whsec_" + base64.b64encode(b"n" * 32).decode()
    both = read_secrets(secrets_file(tmp_path, newer, "", SECRET, ""))
    signatures = webhook_headers("m", 1, b"{}", both)["webhook-signature"].split(" ")
    alone = [webhook_headers("m", 1, b"{}", [secret])["webhook-signature"] for secret in both]
    assert signatures == alone
    assert len(set(signatures)) == 2


def test_the_body_says_what_happened_and_what_to_type_next() -> None:
    assert json.loads(webhook_body(overdue("o-1", compensation=True))) == {
        "type": "choreography.v1.StepOverdue",
        "timestamp": "2026-03-01T09:30:00.250000+00:00",
        "data": {
            "saga_id": "o-1",
            "definition": "order-fulfilment",
            "version": 1,
            "cause": "STEP_FAILURE",
            "deadline": "2026-03-01T09:30:00+00:00",
            "sequence": 7,
            "next_command": "farandole sagas diagnose o-1 --definition order-fulfilment",
            "step": "take-payment",
            "participant": "payments",
            "compensation": True,
        },
    }
    assert json.loads(webhook_body(timed_out()))["data"]["steps_to_undo"] == ["reserve-items", "take-payment"]
    assert "step" not in json.loads(webhook_body(stalled()))["data"]
    assert webhook_body(stalled()) == webhook_body(stalled())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "must be whsec_"),
        ("whsec_not base64!", "must be whsec_"),
        ("whsec_c2hvcnQ=", "24 to 64 random bytes"),
    ],
)
def test_a_wrong_secret_is_told_by_its_line_and_not_by_what_it_is(tmp_path: Path, line: str, said: str) -> None:
    path = secrets_file(tmp_path, SECRET, line)
    with pytest.raises(ConfigurationError) as caught:
        read_secrets(path)
    [fault] = caught.value.faults
    assert fault.where == "FARANDOLE_WEBHOOK_SECRET_FILE"
    assert f"{path}:2 " in fault.reason
    assert said in fault.reason
    assert line.removeprefix("whsec_") not in fault.reason


def test_a_file_without_secrets_and_one_that_is_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no secret"):
        read_secrets(secrets_file(tmp_path, "", " "))
    with pytest.raises(ConfigurationError, match="No such file"):
        read_secrets(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="it is no text"):
        read_secrets(tmp_path / "binary")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://example.com/hook", "must be https"),
        ("http://127.0.0.1.example.com/", "must be https"),
        ("http://10.0.0.1/", "must be https"),
        ("ftp://example.com/", "must be https://HOST/PATH"),
        ("https:///path", "must be https://HOST/PATH"),
        ("https://user:password@example.com/", "no user or password"),
    ],
)
def test_where_to_post_to_is_checked(tmp_path: Path, url: str, said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(WebhookSettings, url=url, secret_file=tmp_path)
    [fault] = caught.value.faults
    assert fault.where == "FARANDOLE_WEBHOOK_URL"
    assert said in fault.reason
    assert "password@" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["https://example.com/hook", "http://localhost:9/", "http://127.8.9.10/", "http://[::1]:1/x"]
)
def test_receivers_of_other_machines_by_https_and_of_this_one_by_either(tmp_path: Path, url: str) -> None:
    assert load_settings(WebhookSettings, url=url, secret_file=tmp_path).url == url


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        webhook()
    assert [str(fault) for fault in caught.value.faults] == [
        "FARANDOLE_WEBHOOK_URL: must be set",
        "FARANDOLE_WEBHOOK_SECRET_FILE: must be set",
    ]


def test_nothing_is_posted_unsigned() -> None:
    with pytest.raises(ValueError, match="needs a secret"):
        Webhook("https://example.com/", [])

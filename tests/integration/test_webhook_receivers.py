"""The webhook against receivers of every kind: a 2xx in time counts, and nothing else does."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
from pathlib import Path

import pytest

from farandole import logs
from farandole.correlator.deadline_actions import DeadlineAction
from farandole.correlator.webhook import Webhook, WebhookError
from farandole.testing import DeadlineActionConformance
from farandole.testing.brokers import free_port
from farandole.testing.deadline_action_conformance import overdue
from tests.integration.webhook_receivers import Answer, garbage, gigabytes, hang, receiving, status, trickle

SECRETS = [b"s" * 24, b"t" * 32]
NOW = 1_780_000_000


def webhook(url: str, *, timeout_seconds: float = 0.5) -> Webhook:
    return Webhook(url, SECRETS, timeout_seconds=timeout_seconds, clock=lambda: NOW)


async def act(action: DeadlineAction) -> None:
    await asyncio.to_thread(action.act, overdue("o-1"))


async def test_a_receiver_can_check_who_sent_it_and_whether_it_had_it_before() -> None:
    async with receiving(status("204 No Content")) as receiver:
        await act(webhook(receiver.url, timeout_seconds=10))
        await act(webhook(receiver.url, timeout_seconds=10))
    first, again = receiver.requests
    assert json.loads(first.body)["data"]["saga_id"] == "o-1"
    assert first.body == again.body
    assert first.headers["webhook-id"] == again.headers["webhook-id"] == overdue("o-1").event_id
    assert first.headers["webhook-timestamp"] == str(NOW)
    assert first.headers["content-type"] == "application/json"
    signed = f"{overdue('o-1').event_id}.{NOW}.".encode() + first.body
    expected = [base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode() for secret in SECRETS]
    assert first.headers["webhook-signature"] == f"v1,{expected[0]} v1,{expected[1]}"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (status("500 Internal Server Error"), "answered 500"),
        (status("404 Not Found"), "answered 404"),
        (status("301 Moved Permanently", "location: http://127.0.0.1:1/elsewhere"), "answered 301"),
        (status("307 Temporary Redirect", "location: /elsewhere"), "answered 307"),
        (hang, "did not answer within 0.5 s"),
        (trickle, "did not answer within 0.5 s"),
        (garbage, "can't be reached: RemoteProtocolError"),
    ],
)
async def test_anything_but_a_2xx_in_time_is_a_failed_try(answer: Answer, said: str) -> None:
    async with receiving(answer) as receiver:
        with pytest.raises(WebhookError) as caught:
            await act(webhook(receiver.url))
        assert said in str(caught.value)
        assert [request.path for request in receiver.requests] == ["/hook"]


async def test_no_log_has_the_url_that_is_posted_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Many a receiver's has a token in it."""
    logs.configure("correlator", "info")
    try:
        async with receiving(status("204 No Content")) as receiver:
            await act(webhook(f"{receiver.url}/t0ken?sig=t0ken", timeout_seconds=10))
            assert [request.path for request in receiver.requests] == ["/hook/t0ken?sig=t0ken"]
        assert "t0ken" not in "".join(capsys.readouterr())
    finally:
        logs.configure("test", "warning")


async def test_of_an_endless_answer_only_a_little_is_read() -> None:
    async with receiving(gigabytes) as receiver:
        await act(webhook(receiver.url, timeout_seconds=10))


async def test_where_nobody_listens_that_is_said() -> None:
    with pytest.raises(WebhookError, match="can't be reached: ConnectError"):
        await act(webhook(f"http://127.0.0.1:{free_port()}/"))


async def test_a_proxy_of_the_environment_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("ALL_PROXY", f"http://127.0.0.1:{free_port()}")
    async with receiving(status("200 OK")) as receiver:
        await act(webhook(receiver.url, timeout_seconds=10))


class TestWebhook(DeadlineActionConformance):
    """Over a receiver of a process of its own: the suite calls from its own thread, and waits there."""

    @pytest.fixture
    def action(self, receiver_process: str) -> DeadlineAction:
        return webhook(receiver_process, timeout_seconds=20)


@pytest.fixture(scope="module")
def receiver_process(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a receiver that answers 204."""
    import threading

    ready = threading.Event()
    address: list[str] = []

    async def serve() -> None:
        async with receiving(status("204 No Content")) as receiver:
            address.append(receiver.url)
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    assert ready.wait(10)
    return address[0]


def test_what_is_read_from_files_signs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from farandole.correlator.webhook import webhook as from_environment

    secrets = tmp_path / "secrets"
    secrets.write_text("whsec_" + base64.b64encode(SECRETS[0]).decode())
    monkeypatch.setenv("FARANDOLE_WEBHOOK_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("FARANDOLE_WEBHOOK_SECRET_FILE", str(secrets))
    assert isinstance(from_environment(), Webhook)

"""The deadline action `webhook`: posts each passed deadline as JSON, signed as Standard Webhooks 1.0.0 says.

A receiver checks `webhook-signature`, keeps `webhook-id` to know repetitions (it is the lifecycle event's own id), and
answers 2xx within the time. Anything else is a failed try: a redirection too, which is not followed, since it could
lead anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from farandole.correlator.deadline_actions import DeadlineAction, PassedDeadline
from farandole.errors import ConfigurationError, Fault, PluginError
from farandole.settings import ENV_PREFIX, load_settings

_SECRET_PREFIX = "whsec_"  # noqa: S105 - what stands before each, and no secret
_SECRET_BYTES = range(24, 65)
"""As Standard Webhooks says."""
_ANSWER_BYTES = 64 * 1024
"""More of an answer than this is not read. Nothing in it matters; a short one lets the connection end in order."""
_USER_AGENT = "farandole-webhook/1"


class WebhookError(PluginError):
    """The receiver did not answer as it should. Says with what, and nothing of the body."""


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be https://HOST/PATH")
    if parts.username or parts.password:
        raise ValueError("must hold no user or password: they would be in logs of others")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise ValueError("must be https; http is for receivers on this machine alone")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class WebhookSettings(BaseSettings):
    """What the webhook is told from outside: `FARANDOLE_WEBHOOK_*`."""

    model_config = SettingsConfigDict(
        env_prefix=f"{ENV_PREFIX}WEBHOOK_", extra="ignore", frozen=True, env_ignore_empty=True
    )

    url: Annotated[str, AfterValidator(_url)]
    """Where to post to."""
    secret_file: Path
    """A file with a secret a line, `whsec_` and Base64. Each signs: so one is replaced by adding the new one, waiting
    for receivers to know it, and removing the old one."""
    timeout_seconds: Annotated[float, Field(gt=0, le=25)] = 10.0
    """For all of one post, from the name's resolution to the end of the answer."""


class Webhook:
    """A `DeadlineAction`."""

    def __init__(
        self,
        url: str,
        secrets: Sequence[bytes],
        *,
        timeout_seconds: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives seconds since 1970, for `webhook-timestamp`. Raises `ValueError` for no secret."""
        if not secrets:
            raise ValueError("a webhook needs a secret to sign by")
        self._url = url
        self._secrets = tuple(secrets)
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._is_loopback = _is_loopback(urlsplit(url).hostname or "")
        self._tls = ssl.create_default_context()

    def act(self, passed: PassedDeadline) -> None:
        """Posts one deadline. Raises `WebhookError` where no 2xx comes in time."""
        body = webhook_body(passed)
        headers = {
            "content-type": "application/json",
            "user-agent": _USER_AGENT,
            **webhook_headers(passed.event_id, int(self._clock()), body, self._secrets),
        }
        asyncio.run(self._post(body, headers))

    def close(self) -> None:
        """See `DeadlineAction.close`: each post has a connection of its own."""

    async def _post(self, body: bytes, headers: dict[str, str]) -> None:
        try:
            async with (
                asyncio.timeout(self._timeout_seconds),
                # a proxy that the environment names is not meant for this machine itself
                httpx.AsyncClient(
                    verify=self._tls, trust_env=not self._is_loopback, timeout=self._timeout_seconds
                ) as client,
                client.stream("POST", self._url, content=body, headers=headers, follow_redirects=False) as answer,
            ):
                await _read_a_little(answer)
                if not answer.is_success:
                    raise WebhookError(f"the receiver answered {answer.status_code}")
        except TimeoutError:
            raise WebhookError(f"the receiver did not answer within {self._timeout_seconds:g} s") from None
        except httpx.HTTPError as error:
            raise WebhookError(f"the receiver can't be reached: {type(error).__name__}") from None


async def _read_a_little(answer: httpx.Response) -> None:
    read = 0
    async for chunk in answer.aiter_raw():
        read += len(chunk)
        if read > _ANSWER_BYTES:
            return


def webhook() -> DeadlineAction:
    """The webhook that the environment describes. A `DeadlineActionFactory`."""
    settings = load_settings(WebhookSettings)
    return Webhook(settings.url, read_secrets(settings.secret_file), timeout_seconds=settings.timeout_seconds)


def read_secrets(path: Path) -> list[bytes]:
    """The secrets of a file, in its order. Raises `ConfigurationError` that says of each wrong line its number, and
    nothing of what it holds."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigurationError([_fault(f"can't be read: {path}: {reason}")]) from None
    secrets: list[bytes] = []
    faults: list[Fault] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            secrets.append(_secret(line.strip()))
        except ValueError as error:
            faults.append(_fault(f"{path}:{number} {error}"))
    if not secrets and not faults:
        faults.append(_fault(f"{path} holds no secret"))
    if faults:
        raise ConfigurationError(faults)
    return secrets


def _fault(reason: str) -> Fault:
    return Fault(f"{ENV_PREFIX}WEBHOOK_SECRET_FILE", reason)


def _secret(text: str) -> bytes:
    shortest, longest = _SECRET_BYTES.start, _SECRET_BYTES.stop - 1
    wanted = f"must be {_SECRET_PREFIX} and the Base64 of {shortest} to {longest} random bytes"
    if not text.startswith(_SECRET_PREFIX):
        raise ValueError(wanted)
    try:
        secret = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(wanted) from None
    if len(secret) not in _SECRET_BYTES:
        raise ValueError(wanted)
    return secret


def webhook_body(passed: PassedDeadline) -> bytes:
    """What is posted: `type`, `timestamp` and `data`, as Standard Webhooks says. The same each time."""
    data: dict[str, Any] = {
        "saga_id": passed.saga_id,
        "definition": passed.definition,
        "version": passed.version,
        "cause": passed.cause.name,
        "deadline": passed.deadline.isoformat(),
        "sequence": passed.sequence,
        "next_command": passed.next_command,
    }
    if passed.step:
        data |= {"step": passed.step, "participant": passed.participant, "compensation": passed.compensation}
    if passed.steps_to_undo:
        data["steps_to_undo"] = list(passed.steps_to_undo)
    whole = {"type": passed.event_type, "timestamp": passed.stream_time.isoformat(), "data": data}
    return json.dumps(whole, separators=(",", ":")).encode()


def webhook_headers(message_id: str, timestamp: int, body: bytes, secrets: Sequence[bytes]) -> dict[str, str]:
    """The three headers of Standard Webhooks: `v1` is the Base64 of HMAC-SHA256 over `id.timestamp.body`, one for each
    secret, separated by spaces."""
    signed = b".".join((message_id.encode(), str(timestamp).encode(), body))
    signatures = (base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }

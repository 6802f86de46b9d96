"""What no one can read is a dead letter, once, with its reason; and nothing else is disturbed by it."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from typing import Any

import pytest

from farandole.partitions import partition_of
from tests.e2e.running_stack import (
    CARD,
    DEAD_LETTERS,
    JSON,
    Stack,
    assert_no_secrets,
    eventually,
    in_parallel,
    order,
    order_subject,
)

CREATED = "orders.v1.OrderCreated"
PROTOBUF = {"ce-datacontenttype": "application/protobuf"}
KIB = 1024
LIMIT_BYTES = 256 * KIB
NOT_FOUND = 5

EMPTY_LINE = b"\x1a\x00"
"""An empty `orders.v1.OrderLine` inside an `orders.v1.OrderCreated`, on the wire."""
SECRET_BODY = json.dumps(order("poison-secret"))


def key_of_another_partition(key: str) -> str:
    """A key that the broker stores elsewhere than it stores `key`."""
    return next(other for n in range(100) if partition_of(other := f"{key}-{n}") != partition_of(key))


def key_of_the_same_partition(key: str) -> str:
    """Another key that the broker stores where it stores `key`."""
    return next(other for n in range(1000) if partition_of(other := f"{key}-{n}") == partition_of(key))


@dataclass(frozen=True)
class Poison:
    """A publication that no one can read."""

    name: str
    body: JSON | str | bytes
    reason: str
    detail: str = ""
    """What the dead letter's detail says, among other things."""
    headers: Mapping[str, str] = field(default_factory=dict)
    subject: str = ""
    saga_id: str = ""
    """The saga that the dead letter names: the body's key, where it could be read that far."""

    @property
    def published_to(self) -> str:
        """Its subject."""
        return self.subject or order_subject(f"poison-{self.name}")

    @property
    def data(self) -> bytes:
        """Its body as it is published."""
        match self.body:
            case bytes():
                return self.body
            case str():
                return self.body.encode()
            case _:
                return json.dumps(self.body).encode()


POISONS = [
    Poison("garbage", b"\x00\xff\xfe" + CARD.encode(), "UNDECODABLE", CREATED),
    Poison("garbage-as-protobuf", b"\x00\xff\xfe" + CARD.encode(), "UNDECODABLE", CREATED, PROTOBUF),
    Poison("text", f"card {CARD}", "UNDECODABLE"),
    Poison("cut-short", SECRET_BODY[:-1], "UNDECODABLE"),
    Poison("a-list", "[]", "UNDECODABLE", "must be an object"),
    Poison("a-card-that-is-a-list", order("poison-list", card=[CARD]), "UNDECODABLE", "card"),
    Poison(
        "unknown-type",
        order("poison-unknown"),
        "UNKNOWN_TYPE",
        "orders.v1.Nothing",
        subject="events.k.orders.v1.Nothing",
    ),
    Poison(
        "no-event", order("poison-line"), "UNKNOWN_TYPE", "orders.v1.OrderLine", subject="events.k.orders.v1.OrderLine"
    ),
    Poison("one-word", order("poison-word"), "UNKNOWN_TYPE", "greeting", subject="events.k.greeting"),
    Poison("wildcards", "{}", "UNKNOWN_TYPE", "*", subject="events.k.*"),
    Poison(
        "another-type", order("poison-type"), "TYPE_MISMATCH", "PaymentFailed", {"ce-type": "payments.v1.PaymentFailed"}
    ),
    Poison("rule", order("poison-rule", currency="euros"), "RULE_VIOLATION", "currency", saga_id="poison-rule"),
    Poison("no-lines", order("poison-lines", lines=[]), "RULE_VIOLATION", "lines", saga_id="poison-lines"),
    Poison("no-key", order(""), "INVALID_KEY", "order_id"),
    Poison("bad-key", order("two words"), "INVALID_KEY", "two words"),
    Poison("empty-protobuf", "", "INVALID_KEY", "order_id", PROTOBUF),
    Poison(
        "other-partition",
        order("poison-elsewhere"),
        "WRONG_PARTITION",
        "publish it to events.poison-elsewhere.orders.v1.OrderCreated",
        subject=order_subject(key_of_another_partition("poison-elsewhere")),
        saga_id="poison-elsewhere",
    ),
    Poison(
        "no-partition",
        order("poison-nowhere"),
        "WRONG_PARTITION",
        "publish it to events.poison-nowhere.orders.v1.OrderCreated",
        subject=order_subject("*"),
        saga_id="poison-nowhere",
    ),
    Poison("version", order("poison-version"), "INVALID_HEADER", "ce-specversion", {"ce-specversion": "0.3"}),
    Poison("time", order("poison-time"), "INVALID_HEADER", "ce-time", {"ce-time": "yesterday"}),
    Poison("percent", order("poison-percent"), "INVALID_HEADER", "ce-id", {"ce-id": "50%"}),
    Poison("xml", "<order/>", "UNSUPPORTED_CONTENT_TYPE", "text/xml", {"ce-datacontenttype": "text/xml"}),
    Poison("half-a-million-submessages", EMPTY_LINE * 500_000, "TOO_LARGE", "1000000 bytes", PROTOBUF),
    Poison("as-many-as-fit", EMPTY_LINE * (LIMIT_BYTES // 2), "TOO_COMPLEX", "nested messages", PROTOBUF),
    Poison("as-many-as-fit-in-json", b'{"lines":[' + b"{}," * 80_000 + b"{}]}", "TOO_COMPLEX", "values"),
    Poison("deep", b"[" * 100_000, "TOO_COMPLEX", "deep"),
    Poison(
        "one-byte-too-many",
        b" " * (LIMIT_BYTES + 1 - len(SECRET_BODY)) + SECRET_BODY.encode(),
        "TOO_LARGE",
        str(LIMIT_BYTES + 1),
    ),
    Poison("a-mebibyte", CARD.encode() * (KIB * KIB // len(CARD)), "TOO_LARGE", "bytes"),
    Poison("a-mebibyte-with-headers", b"x" * KIB * KIB, "TOO_LARGE", "1048576 bytes", {**PROTOBUF, "ce-id": "big"}),
    Poison("seven-mebibytes", b"x" * 7 * KIB * KIB, "TOO_LARGE", f"{7 * KIB * KIB} bytes"),
]


@dataclass
class Aftermath:
    """A stack that has been given all of it."""

    stack: Stack
    pids: dict[str, int]
    """Of its processes, before."""
    sequences: dict[str, int]
    """Under which the stream has each poison."""
    copies: dict[int, list[JSON]]
    """What stands in the stream `DEADLETTERS`, by the sequence in `EVENTS`; each with its `headers`."""


@pytest.fixture(scope="module")
def aftermath(own_stack: Stack) -> Aftermath:
    """All poisons published by `nats pub`, an order behind them, and all that was made of it."""
    stack = own_stack
    pids = stack.pids()
    receipts = in_parallel(lambda one: stack.nats.store(one.published_to, one.body, one.headers), POISONS, workers=4)
    stack.all_taken_in("after-the-poison")
    return Aftermath(
        stack, pids, {one.name: r.sequence for one, r in zip(POISONS, receipts, strict=True)}, copies(stack)
    )


def copies(stack: Stack) -> dict[int, list[JSON]]:
    """The stream `DEADLETTERS`, once it holds what is listed."""
    expected = len(stack.dead_letters())
    eventually(lambda: stack.nats.stream("DEADLETTERS")["state"]["messages"] >= expected, "the copies are stored")
    found: dict[int, list[JSON]] = {}
    last = stack.nats.stream("DEADLETTERS")["state"]["last_seq"]
    for raw in in_parallel(
        lambda n: stack.nats("stream", "get", "DEADLETTERS", str(n), "--json"), range(1, last + 1), 4
    ):
        copy = json.loads(raw)
        block = base64.b64decode(copy["hdrs"]).partition(b"\r\n")[2]
        copy["headers"] = dict(BytesParser().parsebytes(block).items())
        found.setdefault(int(copy["headers"]["farandole-sequence"]), []).append(copy)
    return found


def dead_letter(stack: Stack, sequence: int | str) -> JSON:
    """The one dead letter of a message."""
    [listed] = stack.dead_letters(f"sequence = {sequence}")
    shown: JSON = stack.ask(f"{DEAD_LETTERS}/GetDeadLetter", {"dead_letter_id": listed["dead_letter_id"]})[
        "dead_letter"
    ]
    assert listed.items() <= shown.items()
    return shown


@pytest.mark.parametrize("poison", POISONS, ids=[poison.name for poison in POISONS])
def test_it_is_a_dead_letter_once_with_its_reason(aftermath: Aftermath, poison: Poison) -> None:
    sequence = aftermath.sequences[poison.name]
    letter = dead_letter(aftermath.stack, sequence)

    assert letter["reason"] == f"DEAD_LETTER_REASON_{poison.reason}"
    assert poison.detail in letter["detail"]
    assert letter["participant"] == "correlator"
    assert letter["dead_letter_id"] == f"correlator-{sequence}"
    _, key, event_type = poison.published_to.split(".", 2)
    assert letter["event_type"] == event_type
    as_it_is = "*" in poison.published_to  # the broker maps no subject that has a wildcard
    assert letter["subject"] == (poison.published_to if as_it_is else f"events.{partition_of(key)}.{event_type}")
    assert letter.get("saga_id", "") == poison.saga_id
    assert int(letter.get("body_size", 0)) == len(poison.data)
    assert letter["body_sha256"] == hashlib.sha256(poison.data).hexdigest()
    assert poison.headers.items() <= letter.get("headers", {}).items()

    [copy] = aftermath.copies[sequence]
    assert copy["subject"] == f"deadletters.correlator.{event_type}"
    assert copy["headers"]["farandole-reason"] == poison.reason
    data = base64.b64decode(copy.get("data") or "")
    if len(poison.data) > LIMIT_BYTES:
        summary = json.loads(data)
        assert (summary["size"], summary["sha256"]) == (len(poison.data), letter["body_sha256"])
        assert base64.b64decode(summary["prefix"]) == poison.data[: 4 * KIB]
    else:
        assert data == poison.data


def test_nothing_but_them_is_a_dead_letter(aftermath: Aftermath) -> None:
    listed = Counter(int(letter["sequence"]) for letter in aftermath.stack.dead_letters())
    assert listed == Counter(aftermath.sequences.values())
    assert aftermath.copies.keys() == listed.keys()


def test_what_they_hold_is_shown_to_nobody(aftermath: Aftermath) -> None:
    """The secrets of an order stand in no view and in no log, also where it can't be read."""
    stack = aftermath.stack
    letters = stack.dead_letters()
    assert_no_secrets(letters)
    assert_no_secrets(stack.farandole("deadletters", "list"), stack.farandole("deadletters", "list", "--json"))
    for letter in letters:
        identity = letter["dead_letter_id"]
        assert_no_secrets(stack.ask(f"{DEAD_LETTERS}/GetDeadLetter", {"dead_letter_id": identity}))
    shown = stack.farandole("deadletters", "show", f"correlator-{aftermath.sequences['rule']}")
    assert_no_secrets(shown)
    assert "[REDACTED]" in shown
    assert_no_secrets(stack.logs())


def test_what_could_be_decoded_is_shown_redacted(aftermath: Aftermath) -> None:
    payload = dead_letter(aftermath.stack, aftermath.sequences["rule"])["payload"]
    assert payload["orderId"] == "poison-rule"
    assert payload["currency"] == "euros"
    assert (payload["card"], payload["address"]) == ("[REDACTED]", "[REDACTED]")


def test_nobody_was_disturbed(aftermath: Aftermath) -> None:
    stack = aftermath.stack
    assert stack.pids() == aftermath.pids
    standing = stack.status()
    assert {name: (part["health"], part["restarts"]) for name, part in standing.items()} == dict.fromkeys(
        standing, ("SERVING", 0)
    )
    stack.nats.publish(order_subject("after-all"), order("after-all"))
    stack.completed("after-all")
    assert [saga["saga_id"] for saga in stack.sagas() if saga["saga_id"].startswith("poison")] == []


def test_dead_letters_are_filtered_and_paged(aftermath: Aftermath) -> None:
    stack = aftermath.stack
    too_large = {aftermath.sequences[one.name] for one in POISONS if one.reason == "TOO_LARGE"}
    assert {int(letter["sequence"]) for letter in stack.dead_letters("reason = TOO_LARGE")} == too_large
    [of_a_saga] = stack.dead_letters('saga_id = "poison-rule"')
    assert int(of_a_saga["sequence"]) == aftermath.sequences["rule"]
    everything = [letter["dead_letter_id"] for letter in stack.dead_letters()]
    assert [letter["dead_letter_id"] for letter in stack.dead_letters(page_size=7)] == everything
    sequences = [int(identity.rpartition("-")[2]) for identity in everything]
    assert sequences == sorted(sequences, reverse=True)


@pytest.mark.parametrize("identity", ["correlator-999999999", "nobody-1", "correlator", "correlator-x"])
def test_an_unknown_dead_letter_is_not_found(own_stack: Stack, identity: str) -> None:
    refusal = own_stack.refusal(f"{DEAD_LETTERS}/GetDeadLetter", {"dead_letter_id": identity})
    assert refusal.code == NOT_FOUND
    assert (refusal.info["domain"], refusal.info["reason"]) == ("farandole", "DEAD_LETTER_NOT_FOUND")
    assert refusal.info["metadata"] == {"dead_letter_id": identity}


def test_a_key_in_the_subject_that_shares_the_partition_is_no_error(own_stack: Stack) -> None:
    """Within a partition the body's key rules."""
    subject_key = key_of_the_same_partition("body-rules")
    own_stack.nats.publish(order_subject(subject_key), order("body-rules"))
    own_stack.completed("body-rules")


def test_a_body_above_the_brokers_limit_is_refused_to_its_publisher(own_stack: Stack) -> None:
    with pytest.raises(AssertionError, match="maximum payload"):
        own_stack.nats.store(order_subject("too-large-for-the-broker"), b"x" * 9 * KIB * KIB)


class RawPublisher:
    """A connection that can send what no client would."""

    def __init__(self, stack: Stack) -> None:
        self._socket = socket.create_connection(("127.0.0.1", stack.ports["nats"]), timeout=10)
        self._answers = self._socket.makefile("rb")
        assert self._answers.readline().startswith(b"INFO ")
        self._socket.sendall(b'CONNECT {"verbose":true,"pedantic":false,"headers":true}\r\n')
        self.expect(b"+OK")

    def expect(self, answer: bytes) -> None:
        """The next line must be this."""
        assert self._answers.readline().strip() == answer

    def publish(self, subject: bytes, body: bytes, headers: bytes = b"") -> None:
        """Sends it, and waits until the broker has taken it; `headers` is the whole block."""
        if headers:
            sizes = b"%d %d" % (len(headers), len(headers) + len(body))
            self._socket.sendall(b"HPUB " + subject + b" " + sizes + b"\r\n" + headers + body + b"\r\n")
        else:
            self._socket.sendall(b"PUB " + subject + b" %d\r\n" % len(body) + body + b"\r\n")
        self.expect(b"+OK")

    def close(self) -> None:
        """Ends the connection, which must still stand."""
        self._socket.sendall(b"PING\r\n")
        self.expect(b"PONG")
        self._answers.close()
        self._socket.close()


@contextmanager
def raw_publisher(stack: Stack) -> Iterator[RawPublisher]:
    """A raw connection that the broker must not have cut off at the end."""
    publisher = RawPublisher(stack)
    yield publisher
    publisher.close()


def header_block(*lines: bytes, status: bytes = b"") -> bytes:
    return b"\r\n".join([b"NATS/1.0" + status, *lines, b"", b""])


ORDER = json.dumps(order("raw")).encode()
RAW: list[tuple[str, bytes, bytes, bytes, str]] = [
    ("a subject that is not UTF-8", b"events.k.\xff\xfe", b"x", b"", "UNKNOWN_TYPE"),
    ("a subject nearly as long as a line", b"events.k." + b"a" * 4060, b"x", b"", "UNKNOWN_TYPE"),
    ("a subject of many tokens", b"events.k" + b".a" * 2020, b"x", b"", "UNKNOWN_TYPE"),
    ("a subject with control characters", b"events.k.\x00\x01", b"x", b"", "UNKNOWN_TYPE"),
    (
        "a status that is not UTF-8",
        b"events.raw.orders.v1.OrderCreated",
        b"{}",
        header_block(status=b" \xff\xff"),
        "INVALID_KEY",
    ),
    (
        "a status of the broker",
        b"events.raw.orders.v1.OrderCreated",
        b"{}",
        header_block(status=b" 503"),
        "INVALID_KEY",
    ),
    (
        "a header that is not UTF-8",
        b"events.raw.orders.v1.OrderCreated",
        ORDER,
        header_block(b"ce-id: \xff"),
        "INVALID_HEADER",
    ),
    ("a header without a name", b"events.raw.orders.v1.OrderCreated", ORDER, header_block(b"lost"), "INVALID_HEADER"),
    ("a mebibyte", b"events.raw.orders.v1.OrderCreated", b"x" * KIB * KIB, b"", "TOO_LARGE"),
    (
        "a mebibyte with a header",
        b"events.raw.orders.v1.OrderCreated",
        b"x" * KIB * KIB,
        header_block(b"a: b"),
        "TOO_LARGE",
    ),
]


@pytest.mark.usefixtures("aftermath")
@pytest.mark.parametrize(("what", "subject", "body", "headers", "reason"), RAW, ids=[row[0] for row in RAW])
def test_what_no_client_would_send_is_a_dead_letter_too(
    own_stack: Stack, what: str, subject: bytes, body: bytes, headers: bytes, reason: str
) -> None:
    """And its publisher's connection stands, and so does everybody else's."""
    pids = own_stack.pids()
    before = {letter["dead_letter_id"] for letter in own_stack.dead_letters()}
    with raw_publisher(own_stack) as publisher:
        publisher.publish(subject, body, headers)
    own_stack.all_taken_in(f"after-{what.replace(' ', '-')}")

    [listed] = [letter for letter in own_stack.dead_letters() if letter["dead_letter_id"] not in before]
    letter = dead_letter(own_stack, listed["sequence"])
    assert letter["reason"] == f"DEAD_LETTER_REASON_{reason}"
    copies_of_it = [copy for copy in _newest_copies(own_stack) if copy == letter["sequence"]]
    assert copies_of_it == [letter["sequence"]]
    assert own_stack.pids() == pids


def _newest_copies(stack: Stack) -> list[str]:
    """The sequences in `EVENTS` of the last few copies."""
    last = stack.nats.stream("DEADLETTERS")["state"]["last_seq"]
    found: list[str] = []
    for number in range(max(1, last - 2), last + 1):
        raw: Any = json.loads(stack.nats("stream", "get", "DEADLETTERS", str(number), "--json"))
        block = base64.b64decode(raw["hdrs"]).partition(b"\r\n")[2]
        found.append(str(BytesParser().parsebytes(block)["farandole-sequence"]))
    return found


def test_what_no_one_can_read_is_discarded_as_many_as_match(aftermath: Aftermath) -> None:
    """It holds nothing up; discarded, it is off the list of what is open, with who said so and why."""
    stack = aftermath.stack
    identity = f"correlator-{aftermath.sequences['garbage']}"
    stack.farandole("deadletters", "discard", identity, "--reason", "a test of theirs", "--actor", "ada")
    too_large = {aftermath.sequences[one.name] for one in POISONS if one.reason == "TOO_LARGE"}
    told = stack.answers(
        f"{DEAD_LETTERS}/DiscardDeadLetters",
        {
            "filter": "reason = TOO_LARGE AND " + " OR ".join(f"sequence = {number}" for number in sorted(too_large)),
            "actor": "ada",
            "reason": "sent anew",
        },
    )
    assert told[0]["progress"]["matched"] == told[-1]["progress"]["told"] == str(len(too_large))

    def closed() -> dict[int, tuple[str, str]] | None:
        """Actor and reason of those that are discarded, by sequence; None while they are not all."""
        found = {
            int(letter["sequence"]): (letter["close_actor"], letter["close_reason"])
            for letter in stack.dead_letters("state = DISCARDED")
        }
        return found if len(found) > len(too_large) else None

    assert eventually(closed, "all are discarded") == {
        aftermath.sequences["garbage"]: ("ada", "a test of theirs"),
        **dict.fromkeys(too_large, ("ada", "sent anew")),
    }
    shown = stack.farandole("deadletters", "show", identity)
    assert "DISCARDED" in shown
    assert "a test of theirs" in shown


def test_what_no_one_can_read_yet_is_not_redriven(aftermath: Aftermath) -> None:
    identity = f"correlator-{aftermath.sequences['unknown-type']}"
    done = aftermath.stack.try_farandole("deadletters", "redrive", identity, "--reason", "perhaps now")
    assert (done.returncode, "FAILED_PRECONDITION" in done.stderr) == (1, True)
    assert "orders.v1.Nothing" in done.stderr
    assert dead_letter(aftermath.stack, aftermath.sequences["unknown-type"])["state"] == "DEAD_LETTER_STATE_OPEN"

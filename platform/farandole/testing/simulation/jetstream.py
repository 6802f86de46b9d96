"""JetStream as far as Farandole uses it, without a network: streams, pull consumers, direct reads.

It behaves as nats-server 2.15 does; `farandole.testing.broker_conformance` says what that is, and holds both to it.
What Farandole does not use raises `NotSimulatedError` instead of doing something that no server does.
"""

from __future__ import annotations

import base64
import enum
import json
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from random import Random
from typing import Any, Protocol

from farandole.envelope import StoredMessage
from farandole.testing.simulation.loop import VirtualTimeLoop
from farandole.testing.simulation.network import Weather
from farandole.testing.simulation.subjects import matches, transform

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
"""The virtual time 0, as the server's clock has it."""

NO_RESPONDERS = {"Status": "503"}
MAX_PAYLOAD = 1024 * 1024
"""The largest message, headers and all, as nats-server has it by default."""

_EPOCH_MICROSECONDS = int(EPOCH.timestamp()) * 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_NANOSECONDS = 1_000_000_000
_KNOWN_HEADERS = frozenset(
    {"Nats-Msg-Id", "Nats-Expected-Last-Subject-Sequence", "Nats-Expected-Last-Subject-Sequence-Subject"}
)
_STREAM_DEFAULTS: Mapping[str, object] = {"max_msg_size": -1, "max_bytes": -1, "duplicate_window": 120 * _NANOSECONDS}
_PENDING_MESSAGES, _PENDING_BYTES = "Nats-Pending-Messages", "Nats-Pending-Bytes"

DELIVERY, RECEIPT, ANSWER, STATUS = "delivery", "receipt", "answer", "status"
"""What the server sends: stored messages to their readers, receipts of publications, answers of the JetStream API, and
how a pull stands."""


class NotSimulatedError(NotImplementedError):
    """Something was asked of JetStream that the simulation does not do."""


class Storage(enum.Enum):
    """Whether there is room to store more."""

    ROOM = enum.auto()
    LIMIT = enum.auto()
    """The server's own limit (`max_file_store`) is reached: it refuses publications."""
    FULL = enum.auto()
    """A write failed since the disk is full: the server stores and answers nothing more until it is restarted."""


class Network(Protocol):
    """What JetStream needs of the server around it."""

    def send(
        self, kind: str, inbox: str, data: bytes, headers: Mapping[str, str] | None, subject: str = "", reply: str = ""
    ) -> None:
        """Sends a message to whoever listens on `inbox`, under `subject` where that is another one."""
        ...

    def is_heard(self, inbox: str) -> bool:
        """Whether someone listens there, as far as the server knows."""
        ...


@dataclass(slots=True)
class _Stored:
    sequence: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    microseconds: int
    size: int


@dataclass(slots=True)
class _Proposal:
    """A publication that the stream has taken on and not yet stored."""

    subject: str
    reply: str
    headers: Mapping[str, str]
    data: bytes
    microseconds: int


@dataclass(slots=True, eq=False)
class _Pull:
    inbox: str
    messages: int
    bytes: int
    """What is left of `max_bytes`; 0 where there is no limit."""
    is_limited: bool
    until: float
    heartbeat: float
    heartbeat_at: float
    open: bool = True

    def pending(self) -> dict[str, str]:
        return {_PENDING_MESSAGES: str(self.messages), _PENDING_BYTES: str(self.bytes)}


class Stream:
    """One stream, and its consumers."""

    def __init__(self, config: Mapping[str, Any], created: str) -> None:
        self.config = dict(config)
        self.name: str = config["name"]
        self.created = created
        self.patterns = [pattern.split(".") for pattern in config["subjects"]]
        mapping = config.get("subject_transform")
        self.transform = transform(mapping["src"], mapping["dest"]) if mapping else None
        self.messages: list[_Stored] = []
        self.bytes = 0
        """What the messages take on the disk."""
        self.stored: list[StoredMessage] = []
        """What is stored, in order."""
        self.last_of_subject: dict[str, int] = {}
        self.known_ids: dict[str, tuple[int, int]] = {}
        """Sequence and time of what was stored under a message id within the window, oldest first."""
        self.consumers: dict[str, Consumer] = {}
        self.proposals: deque[tuple[float, _Proposal]] = deque()
        """With the time at which each is stored."""

    def captures(self, subject: Sequence[str]) -> bool:
        """Whether a subject, by its tokens, is one of the stream's."""
        return any(matches(pattern, subject) for pattern in self.patterns)

    def last_sequence(self) -> int:
        """Of the last message; 0 where there is none."""
        return len(self.messages)

    def find(self, pattern: str, after: int) -> _Stored | None:
        """The first message behind a sequence that a pattern matches."""
        tokens = pattern.split(".")
        for message in self.messages[max(after, 0) :]:
            if matches(tokens, message.subject.split(".")):
                return message
        return None

    def last_on(self, pattern: str) -> int:
        """The last sequence on a subject or pattern; 0 for none."""
        if "*" not in pattern and ">" not in pattern:
            return self.last_of_subject.get(pattern, 0)
        tokens = pattern.split(".")
        return max((n for subject, n in self.last_of_subject.items() if matches(tokens, subject.split("."))), default=0)


class Consumer:
    """A durable pull consumer whose acknowledgements cover all before them (`ack_policy: all`)."""

    def __init__(self, config: Mapping[str, Any], created: str, stream: Stream) -> None:
        self.name: str = config["name"]
        self.created = created
        self.stream = stream
        self.waiting: deque[_Pull] = deque()
        self.unacknowledged: dict[int, tuple[int, float, int]] = {}
        """By stream sequence: consumer sequence, when delivered, how often."""
        self.again: deque[int] = deque()
        self.delivered_active = 0
        self.floor_active = 0
        self.watching = False
        self.turn = 0.0
        """When the server comes to the last pull that has arrived; pulls keep their order."""
        self.configure(config)
        self.reset(1)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Takes a configuration on."""
        self.config = dict(config)
        self.filters = tuple(config.get("filter_subjects") or [">"])
        self.ack_wait: float = config["ack_wait"] / _NANOSECONDS

    def reset(self, sequence: int) -> None:
        """Goes on with the message of that stream sequence, and counts deliveries from 1."""
        self.next = sequence
        self.delivered = (0, sequence - 1)
        """The consumer's and the stream's sequence of the last delivery."""
        self.floor = (0, sequence - 1)
        self.unacknowledged.clear()
        self.again.clear()
        self.delivered_active = self.floor_active = 0
        self.count_pending()

    def count_pending(self) -> None:
        """Counts what is still to be delivered for the first time."""
        self.pending = sum(self.wants(message.subject) for message in self.stream.messages[max(self.next - 1, 0) :])

    def wants(self, subject: str) -> bool:
        """Whether a stored subject passes the filters."""
        return _passes(self.filters, subject)

    def acknowledge(self, stream_sequence: int, consumer_sequence: int) -> bool:
        """Takes an acknowledgement in; whether it is one of what was delivered since the last reset."""
        if stream_sequence >= self.next or consumer_sequence <= self.floor[0] or stream_sequence <= self.floor[1]:
            return False
        self.floor = (consumer_sequence, stream_sequence)
        for sequence in [s for s in self.unacknowledged if s <= stream_sequence]:
            del self.unacknowledged[sequence]
        if self.again:
            self.again = deque(sequence for sequence in self.again if sequence > stream_sequence)
        return True


class JetStream:
    """Streams and consumers of one account, on a server or on a cluster whose streams have one leader at a time."""

    def __init__(
        self, loop: VirtualTimeLoop, random: Random, weather: Weather, network: Network, strikes: Counter[str]
    ) -> None:
        self._loop = loop
        self._weather = weather
        self._random = random
        self._network = network
        self._strikes = strikes
        self.streams: dict[str, Stream] = {}
        self.storage = Storage.ROOM
        self.has_leader = True
        self.on_stored: Callable[[str, StoredMessage], None] = lambda _stream, _message: None
        """Called with each message as it is stored, and the stream's name."""
        self._last_microseconds = 0
        self._life = 0
        """Counts the server's starts."""

    # the server's clock

    def microseconds(self) -> int:
        """The server's clock, in microseconds since 1970. It never goes back; two messages may have the same time."""
        now = _EPOCH_MICROSECONDS + round(self._loop.time() * 1_000_000)
        self._last_microseconds = max(now, self._last_microseconds)
        return self._last_microseconds

    def create_stream(self, name: str, config: Mapping[str, Any]) -> None:
        """Makes a stream at once, or does nothing where there is the same."""
        self._create_stream(name, config)

    # what clients send

    def takes(self, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> bool:
        """Takes a message in; whether it was for JetStream, and so someone responds to it."""
        if subject.startswith("$JS."):
            return self._control(subject, reply, data)
        tokens = subject.split(".")
        for stream in self.streams.values():
            if stream.captures(tokens):
                if not self.has_leader:
                    return False
                self._propose(stream, _stored_subject(stream, tokens, subject), reply, headers or {}, data)
                return True
        return False

    def _control(self, subject: str, reply: str, data: bytes) -> bool:
        tokens = subject.split(".")
        match tokens[1:]:
            case ["ACK", stream, consumer, _, stream_sequence, consumer_sequence, _, _]:
                found = self._consumer(stream, consumer)
                if found is None or not self.has_leader:
                    return False
                if data not in {b"+ACK", b""}:
                    raise NotSimulatedError(f"an acknowledgement {data!r}")
                if found.acknowledge(int(stream_sequence), int(consumer_sequence)):
                    found.floor_active = self.microseconds()
                return True
            case ["API", "CONSUMER", "MSG", "NEXT", stream, consumer]:
                found = self._consumer(stream, consumer)
                if found is None or not self.has_leader:
                    return False
                found.turn = self._in_turn(self._pull, found, reply, _read(data), after=found.turn)
                return True
            case ["API", "DIRECT", "GET", stream, *rest]:
                if stream not in self.streams:
                    return False
                request = {"last_by_subj": ".".join(rest)} if rest else _read(data)
                self._in_turn(self._direct_get, self.streams[stream], reply, request)
                return True
            case ["API", *call]:
                self._in_turn(self._call, call, reply, data)
                return True
            case _:
                raise NotSimulatedError(f"a message on {subject}")

    def _in_turn(self, work: Callable[..., None], *arguments: object, after: float = 0.0) -> float:
        """Does what was asked for when the server comes to it, not before a given time; returns when that is."""
        least, most = self._weather.work_seconds
        at = max(after, self._loop.time() + least + (most - least) * self._random.random())
        self._loop.schedule(at, self._if_alive, self._life, work, arguments)
        return at

    def _if_alive(self, life: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life == self._life:
            work(*arguments)

    def _consumer(self, stream: str, consumer: str) -> Consumer | None:
        found = self.streams.get(stream)
        return found.consumers.get(consumer) if found else None

    # publications

    def _propose(self, stream: Stream, subject: str, reply: str, headers: Mapping[str, str], data: bytes) -> None:
        for name in headers:
            if name.startswith("Nats-") and name not in _KNOWN_HEADERS:
                raise NotSimulatedError(f"a publication with the header {name}")
        proposal = _Proposal(subject, reply, headers, data, self.microseconds())
        least, most = self._weather.store_seconds
        if most <= 0:
            self._decide(stream, proposal)
            return
        now = self._loop.time()
        before = stream.proposals[-1][0] if stream.proposals else now
        at = max(before, now + least + (most - least) * self._random.random())
        stream.proposals.append((at, proposal))
        if len(stream.proposals) == 1:
            self._loop.schedule(at, self._decide_proposals, stream)

    def _decide_proposals(self, stream: Stream) -> None:
        now, proposals = self._loop.time(), stream.proposals
        while proposals and proposals[0][0] <= now:
            self._decide(stream, proposals.popleft()[1])
        if proposals:
            self._loop.schedule(proposals[0][0], self._decide_proposals, stream)

    def _decide(self, stream: Stream, proposal: _Proposal, *, tells: bool = True) -> None:
        """Stores a publication or refuses it: for a wrong sequence before it is found to be a duplicate."""
        headers = proposal.headers
        answer: str | None = None
        expected = headers.get("Nats-Expected-Last-Subject-Sequence")
        identity = headers.get("Nats-Msg-Id")
        if expected is not None:
            pattern = headers.get("Nats-Expected-Last-Subject-Sequence-Subject", proposal.subject)
            last = stream.last_on(pattern)
            if last != (int(expected) if expected.isdecimal() else 0):
                answer = _refused(stream.name, 400, 10071, f"wrong last sequence: {last}")
        if answer is None and identity is not None and (known := self._known(stream, identity)):
            answer = f'{{"stream":"{stream.name}","seq":{known},"duplicate": true}}'
        size = len(proposal.data) + header_bytes(headers)
        if answer is None and 0 <= stream.config["max_msg_size"] < size:
            answer = _refused(stream.name, 400, 10054, "message size exceeds maximum allowed")
        if answer is None and self.storage is not Storage.ROOM:
            self._strikes["publication refused by a full disk"] += 1
            if self.storage is Storage.FULL:
                return
            answer = _refused(stream.name, 503, 10023, "insufficient resources")
        if answer is None and 0 < stream.config["max_bytes"] < stream.bytes + _on_disk(proposal.subject, size):
            answer = _refused(stream.name, 503, 10077, "maximum bytes exceeded")
        if answer is None:
            answer = f'{{"stream":"{stream.name}","seq":{self._store(stream, proposal)}}}'
        if tells and proposal.reply:
            self._network.send(RECEIPT, proposal.reply, answer.encode(), None)

    def _known(self, stream: Stream, identity: str) -> int:
        """The sequence of what was stored under a message id within the window; 0 for nothing."""
        oldest = self.microseconds() - stream.config["duplicate_window"] // 1000
        known = stream.known_ids
        while known:
            first = next(iter(known))
            if known[first][1] >= oldest:
                break
            del known[first]
        return known.get(identity, (0, 0))[0]

    def _store(self, stream: Stream, proposal: _Proposal) -> int:
        headers, subject, data = proposal.headers, proposal.subject, proposal.data
        sequence = len(stream.messages) + 1
        message = _Stored(
            sequence, subject, headers, data, proposal.microseconds, len(subject) + len(data) + header_bytes(headers)
        )
        time = EPOCH + (proposal.microseconds - _EPOCH_MICROSECONDS) * _MICROSECOND
        told = StoredMessage(subject, headers, data, sequence, time)
        stream.bytes += _on_disk(subject, message.size - len(subject))
        stream.messages.append(message)
        stream.stored.append(told)
        stream.last_of_subject[subject] = sequence
        identity = headers.get("Nats-Msg-Id")
        if identity is not None:
            stream.known_ids[identity] = (sequence, proposal.microseconds)
        self.on_stored(stream.name, told)
        for consumer in stream.consumers.values():
            if consumer.next <= sequence and consumer.wants(subject):
                consumer.pending += 1
                if consumer.waiting:
                    self._deliver(consumer)
        return sequence

    # consumers

    def _pull(self, consumer: Consumer, inbox: str, request: Mapping[str, Any]) -> None:
        for name in request:
            if name not in {"batch", "max_bytes", "expires", "idle_heartbeat", "no_wait"}:
                raise NotSimulatedError(f"a pull with {name}")
        if not self.has_leader or self._consumer(consumer.stream.name, consumer.name) is not consumer:
            return
        now = self._loop.time()
        if len(consumer.waiting) >= consumer.config.get("max_waiting", 512):
            self._network.send(STATUS, inbox, b"", {"Status": "409", "Description": "Exceeded MaxWaiting"})
            return
        expires = request.get("expires", 0) / _NANOSECONDS
        heartbeat = request.get("idle_heartbeat", 0) / _NANOSECONDS
        limit = request.get("max_bytes", 0)
        pull = _Pull(
            inbox,
            request.get("batch", 1),
            limit,
            limit > 0,
            now + expires if expires else float("inf"),
            heartbeat,
            now + heartbeat if heartbeat else float("inf"),
        )
        consumer.waiting.append(pull)
        self._deliver(consumer)
        if pull.open and request.get("no_wait") and not expires:
            self._end(consumer, pull, {"Status": "404", "Description": "No Messages"})
        elif pull.open:
            self._watch(consumer, pull)

    def _end(self, consumer: Consumer, pull: _Pull, status: Mapping[str, str] | None) -> None:
        pull.open = False
        consumer.waiting.remove(pull)
        if status:
            self._network.send(STATUS, pull.inbox, b"", status)

    def _watch(self, consumer: Consumer, pull: _Pull) -> None:
        """Comes back when a waiting pull wants a heartbeat or is over."""
        at = min(pull.until, pull.heartbeat_at)
        if at != float("inf"):
            self._loop.schedule(at, self._look_at, consumer, pull)

    def _look_at(self, consumer: Consumer, pull: _Pull) -> None:
        if not pull.open:
            return
        now = self._loop.time()
        if not self._network.is_heard(pull.inbox):
            self._end(consumer, pull, None)
        elif now >= pull.until:
            self._end(consumer, pull, {"Status": "408", "Description": "Request Timeout", **pull.pending()})
        else:
            if now >= pull.heartbeat_at:
                pull.heartbeat_at = now + pull.heartbeat
                last = {
                    "Nats-Last-Consumer": str(consumer.delivered[0]),
                    "Nats-Last-Stream": str(consumer.delivered[1]),
                }
                self._network.send(STATUS, pull.inbox, b"", {"Status": "100", "Description": "Idle Heartbeat", **last})
            self._watch(consumer, pull)

    def _deliver(self, consumer: Consumer) -> None:
        """Delivers to the pulls that wait, in turn, until there is no message or no pull left."""
        while consumer.waiting:
            again = bool(consumer.again)
            message = consumer.stream.messages[consumer.again[0] - 1] if again else self._next(consumer)
            if message is None:
                return
            pull = self._pull_for(consumer, message)
            if pull is None:
                return
            if again:
                consumer.again.popleft()
                times = consumer.unacknowledged[message.sequence][2] + 1
            else:
                consumer.next = message.sequence + 1
                consumer.pending -= 1
                times = 1
            number = consumer.delivered[0] + 1
            consumer.delivered = (number, max(message.sequence, consumer.delivered[1]))
            consumer.delivered_active = self.microseconds()
            now = self._loop.time()
            consumer.unacknowledged[message.sequence] = (number, now, times)
            if not consumer.watching:
                consumer.watching = True
                self._loop.schedule(now + consumer.ack_wait, self._redeliver, consumer)
            reply = (
                f"$JS.ACK.{consumer.stream.name}.{consumer.name}.{times}.{message.sequence}.{number}"
                f".{message.microseconds}000.{consumer.pending}"
            )
            pull.messages -= 1
            pull.heartbeat_at = now + pull.heartbeat if pull.heartbeat else float("inf")
            if pull.is_limited:
                pull.bytes -= message.size + len(reply)
            consumer.waiting.popleft()
            if pull.messages > 0:
                consumer.waiting.append(pull)
            else:
                pull.open = False
            self._network.send(DELIVERY, pull.inbox, message.data, message.headers or None, message.subject, reply)

    def _next(self, consumer: Consumer) -> _Stored | None:
        messages = consumer.stream.messages
        for at in range(consumer.next - 1, len(messages)):
            if consumer.wants(messages[at].subject):
                return messages[at]
            consumer.next = at + 2
        return None

    def _pull_for(self, consumer: Consumer, message: _Stored) -> _Pull | None:
        """The pull whose turn it is. One that nobody listens to, or for which the message is too large, ends."""
        while consumer.waiting:
            pull = consumer.waiting[0]
            if not self._network.is_heard(pull.inbox):
                self._end(consumer, pull, None)
            elif pull.is_limited and message.size + len(consumer.name) + 40 > pull.bytes:
                status = {"Status": "409", "Description": "Message Size Exceeds MaxBytes", **pull.pending()}
                self._end(consumer, pull, status)
            else:
                return pull
        return None

    def _redeliver(self, consumer: Consumer) -> None:
        """What has not been acknowledged in time is delivered again, before what is new."""
        consumer.watching = False
        now = self._loop.time()
        waiting = set(consumer.again)
        first: float | None = None
        for sequence, (_, at, _times) in consumer.unacknowledged.items():
            if sequence in waiting:
                continue
            if at + consumer.ack_wait <= now:
                consumer.again.append(sequence)
            elif first is None or at < first:
                first = at
        if first is not None:
            consumer.watching = True
            self._loop.schedule(first + consumer.ack_wait, self._redeliver, consumer)
        self._deliver(consumer)

    # reading without a consumer

    def _direct_get(self, stream: Stream, reply: str, request: Mapping[str, Any]) -> None:
        for name in request:
            if name not in {"seq", "batch", "max_bytes", "next_by_subj", "last_by_subj"}:
                raise NotSimulatedError(f"a direct get with {name}")
        if not request:
            self._network.send(ANSWER, reply, b"", {"Status": "408", "Description": "Empty Request"})
            return
        seen = self._seen_by_replica(stream)
        found: list[_Stored] = []
        if "last_by_subj" in request:
            tokens = request["last_by_subj"].split(".")
            found = [m for m in reversed(seen) if matches(tokens, m.subject.split("."))][:1]
        else:
            tokens = request.get("next_by_subj", ">").split(".")
            found = [m for m in seen[max(request.get("seq", 1) - 1, 0) :] if matches(tokens, m.subject.split("."))]
            if "next_by_subj" not in request and "batch" not in request:
                found = [m for m in found[:1] if m.sequence == request["seq"]]
        if not found:
            self._network.send(ANSWER, reply, b"", {"Status": "404", "Description": "Message Not Found"})
        elif "batch" in request:
            self._send_page(stream, reply, found, request["batch"], request.get("max_bytes", 0))
        else:
            self._network.send(ANSWER, reply, found[0].data, _told(stream, found[0]))

    def _seen_by_replica(self, stream: Stream) -> list[_Stored]:
        lag = self._weather.replica_lag_seconds
        if lag <= 0:
            return stream.messages
        until = self.microseconds() - round(lag * self._random.random() * 1_000_000)
        return [message for message in stream.messages if message.microseconds <= until]

    def _send_page(self, stream: Stream, reply: str, found: Sequence[_Stored], most: int, most_bytes: int) -> None:
        size = last = 0
        left = len(found)
        for message in found[:most]:
            left -= 1
            place = {"Nats-Num-Pending": str(left), "Nats-Last-Sequence": str(last)}
            self._network.send(ANSWER, reply, message.data, {**_told(stream, message), **place})
            last = message.sequence
            size += message.size
            if 0 < most_bytes <= size:
                break
        end = {"Status": "204", "Description": "EOB", "Nats-Num-Pending": str(left), "Nats-Last-Sequence": str(last)}
        self._network.send(ANSWER, reply, b"", end)

    # the API

    def _call(self, call: Sequence[str], reply: str, data: bytes) -> None:
        name = ".".join(call)
        if not self.has_leader:
            # the meta leader may answer for a stream that has none, or nobody
            if self._random.random() < 0.5:
                self._answer(reply, _error(503, 10008, "JetStream system temporarily unavailable"))
            return
        request = _read(data)
        match call:
            case ["STREAM", "INFO", stream]:
                answer = self._info(stream)
            case ["STREAM", "CREATE", stream]:
                answer = self._create_stream(stream, request)
            case ["STREAM", "DELETE", stream]:
                answer = self._delete_stream(stream)
            case ["STREAM", "MSG", "GET", stream]:
                answer = self._get(stream, request)
            case ["CONSUMER", "INFO", stream, consumer]:
                answer = self._consumer_info(stream, consumer)
            case ["CONSUMER", "CREATE", stream, consumer]:
                answer = self._create_consumer(stream, consumer, request)
            case ["CONSUMER", "DELETE", stream, consumer]:
                answer = self._delete_consumer(stream, consumer)
            case ["CONSUMER", "RESET", stream, consumer]:
                if self._consumer(stream, consumer) is None:
                    return  # the server is silent, too
                answer = self._reset_consumer(stream, consumer, request)
            case _:
                raise NotSimulatedError(f"the JetStream API's {name}")
        self._answer(reply, answer)

    def _answer(self, reply: str, answer: Mapping[str, Any]) -> None:
        if reply:
            self._network.send(ANSWER, reply, json.dumps(answer).encode(), None)

    def _info(self, name: str) -> Mapping[str, Any]:
        stream = self.streams.get(name)
        if stream is None:
            return _error(404, 10059, "stream not found")
        messages = stream.messages
        state = {
            "messages": len(messages),
            "bytes": stream.bytes,
            "first_seq": messages[0].sequence if messages else 0,
            "last_seq": len(messages),
            "consumer_count": len(stream.consumers),
        }
        return {"config": stream.config, "created": stream.created, "state": state, "ts": self._timestamp()}

    def _create_stream(self, name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        stream = self.streams.get(name)
        wanted = {**_STREAM_DEFAULTS, **config}
        if stream is not None and stream.config != wanted:
            return _error(400, 10058, "stream name already in use with a different configuration")
        if stream is None:
            self.streams[name] = Stream(wanted, self._timestamp())
        return {**self._info(name), "did_create": True}

    def _delete_stream(self, name: str) -> Mapping[str, Any]:
        stream = self.streams.pop(name, None)
        if stream is None:
            return _error(404, 10059, "stream not found")
        for consumer in stream.consumers.values():
            self._end_pulls(consumer, "Consumer Deleted")
        return {"success": True}

    def _get(self, name: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        stream = self.streams.get(name)
        if stream is None:
            return _error(404, 10059, "stream not found")
        match request:
            case {"last_by_subj": pattern}:
                sequence = stream.last_on(pattern)
            case {"next_by_subj": pattern}:
                found = stream.find(pattern, request.get("seq", 1) - 1)
                sequence = found.sequence if found else 0
            case {"seq": sequence}:
                pass
            case _:
                raise NotSimulatedError(f"a stored message by {request}")
        if not 0 < sequence <= len(stream.messages):
            return _error(404, 10037, "no message found")
        message = stream.messages[sequence - 1]
        told: dict[str, Any] = {"subject": message.subject, "seq": sequence, "time": _timestamp(message.microseconds)}
        if message.headers:
            block = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in message.headers.items()) + "\r\n"
            told["hdrs"] = base64.b64encode(block.encode()).decode()
        if message.data:
            told["data"] = base64.b64encode(message.data).decode()
        return {"message": told}

    def _consumer_info(self, stream: str, name: str) -> Mapping[str, Any]:
        if stream not in self.streams:
            return _error(404, 10059, "stream not found")
        consumer = self._consumer(stream, name)
        if consumer is None:
            return _error(404, 10014, "consumer not found")
        for pull in [pull for pull in consumer.waiting if not self._network.is_heard(pull.inbox)]:
            self._end(consumer, pull, None)
        return {
            "stream_name": stream,
            "name": name,
            "created": consumer.created,
            "config": consumer.config,
            "delivered": _progress(consumer.delivered, consumer.delivered_active),
            "ack_floor": _progress(consumer.floor, consumer.floor_active),
            "num_ack_pending": len(consumer.unacknowledged),
            "num_redelivered": sum(times > 1 for _, _, times in consumer.unacknowledged.values()),
            "num_waiting": len(consumer.waiting),
            "num_pending": consumer.pending,
            "ts": self._timestamp(),
        }

    def _create_consumer(self, stream: str, name: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        config, action = request["config"], request.get("action", "")
        if stream not in self.streams:
            return _error(404, 10059, "stream not found")
        if config.get("ack_policy") != "all" or config.get("deliver_policy") != "all":
            raise NotSimulatedError("a consumer that does not deliver all messages, or acknowledges each by itself")
        known = self._consumer(stream, name)
        if known is None:
            self.streams[stream].consumers[name] = Consumer(config, self._timestamp(), self.streams[stream])
        elif known.config != config:
            if action == "create":
                return _error(400, 10148, "consumer already exists")
            known.configure(config)
            known.count_pending()
        return self._consumer_info(stream, name)

    def _delete_consumer(self, stream: str, name: str) -> Mapping[str, Any]:
        if stream not in self.streams:
            return _error(404, 10059, "stream not found")
        consumer = self.streams[stream].consumers.pop(name, None)
        if consumer is None:
            return _error(404, 10014, "consumer not found")
        self._end_pulls(consumer, "Consumer Deleted")
        return {"success": True}

    def _reset_consumer(self, stream: str, name: str, request: Mapping[str, Any]) -> Mapping[str, Any]:
        consumer = self.streams[stream].consumers[name]
        sequence = request.get("seq") or consumer.floor[1] + 1
        consumer.reset(sequence)
        info = self._consumer_info(stream, name)
        self._loop.call_soon(self._deliver, consumer)
        return {**info, "reset_seq": sequence}

    def _end_pulls(self, consumer: Consumer, why: str) -> None:
        for pull in list(consumer.waiting):
            self._end(consumer, pull, {"Status": "409", "Description": why})
        consumer.unacknowledged.clear()
        consumer.again.clear()

    def _timestamp(self) -> str:
        return _timestamp(self.microseconds())

    # what goes wrong

    def stop(self) -> None:
        """The server ends: of what is being stored some gets to the disk, and nobody is told. Pulls are forgotten."""
        self._life += 1
        self._lose_proposals()
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                for pull in list(consumer.waiting):
                    self._end(consumer, pull, None)

    def lose_leader(self) -> None:
        """The leader of the streams and consumers gives up: until there is another one, nothing is taken on."""
        self._lose_proposals()
        self.has_leader = False
        for stream in self.streams.values():
            for consumer in stream.consumers.values():
                for pull in list(consumer.waiting):
                    self._end(consumer, pull, {"Status": "409", "Description": "Leadership Change"})
                self._fall_back(consumer)

    def elect_leader(self) -> None:
        """There is a leader again."""
        self.has_leader = True

    def forget_message_ids(self) -> None:
        """The windows of duplicates are emptied."""
        for stream in self.streams.values():
            stream.known_ids.clear()

    def _lose_proposals(self) -> None:
        for stream in self.streams.values():
            kept = self._random.randint(0, len(stream.proposals))
            for at, (_, proposal) in enumerate(list(stream.proposals)):
                if at < kept:
                    self._decide(stream, proposal, tells=False)
                kind = "publication stored without a receipt" if at < kept else "publication lost before it was stored"
                self._strikes[kind] += 1
            stream.proposals.clear()

    def _fall_back(self, consumer: Consumer) -> None:
        """The new leader may not know of the last deliveries; it makes them again, under the same numbers."""
        known = sorted(consumer.unacknowledged)
        if not known or consumer.again or any(times > 1 for _, _, times in consumer.unacknowledged.values()):
            return
        lost = known[self._random.randint(0, len(known)) :]
        if lost:
            consumer.delivered = (consumer.unacknowledged[lost[0]][0] - 1, lost[0] - 1)
            consumer.next = lost[0]
            for sequence in lost:
                del consumer.unacknowledged[sequence]
            consumer.count_pending()


@lru_cache(maxsize=65536)
def _passes(filters: tuple[str, ...], subject: str) -> bool:
    """Whether one of the filters matches. Of many runs the stored subjects and the filters are the same few."""
    tokens = subject.split(".")
    return any(matches(pattern.split("."), tokens) for pattern in filters)


def header_bytes(headers: Mapping[str, str]) -> int:
    """The length of a header block, for headers of ASCII."""
    return 12 + sum(len(name) + len(value) + 4 for name, value in headers.items()) if headers else 0


def _on_disk(subject: str, size: int) -> int:
    """What a message of that size, its headers included, takes in the server's files, nearly."""
    return len(subject) + size + 34


def _stored_subject(stream: Stream, tokens: Sequence[str], subject: str) -> str:
    return stream.transform(tokens) if stream.transform else subject


def _refused(stream: str, code: int, error: int, why: str) -> str:
    refusal = f'{{"code":{code},"err_code":{error},"description":"{why}"}}'
    return f'{{"error":{refusal},"stream":"{stream}","seq":0}}'


def _error(code: int, error: int, why: str) -> Mapping[str, Any]:
    return {"error": {"code": code, "err_code": error, "description": why}}


def _told(stream: Stream, message: _Stored) -> dict[str, str]:
    """A stored message's headers in an answer to a direct get."""
    return {
        **message.headers,
        "Nats-Stream": stream.name,
        "Nats-Subject": message.subject,
        "Nats-Sequence": str(message.sequence),
        "Nats-Time-Stamp": _timestamp(message.microseconds),
    }


def _progress(at: tuple[int, int], active: int) -> dict[str, Any]:
    progress: dict[str, Any] = {"consumer_seq": at[0], "stream_seq": at[1]}
    if active:
        progress["last_active"] = _timestamp(active)
    return progress


@lru_cache(maxsize=4096)
def _read(request: bytes) -> Mapping[str, Any]:
    """A request's JSON; nobody changes it."""
    read: Mapping[str, Any] = json.loads(request) if request else {}
    return read


def _timestamp(microseconds: int) -> str:
    time = EPOCH + (microseconds - _EPOCH_MICROSECONDS) * _MICROSECOND
    return time.isoformat(timespec="microseconds")[:26] + "000Z"

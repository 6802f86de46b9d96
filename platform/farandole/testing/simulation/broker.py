"""A simulated NATS server with JetStream, for one event loop of virtual time.

It routes messages between simulated clients, keeps streams, and breaks when it is told to. All that happens at random
comes from one `random.Random`: the same seed, the same run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random

from farandole.broker.streams import DEADLETTERS, EVENTS, STREAMS
from farandole.envelope import StoredMessage
from farandole.testing.simulation.client import SimulatedClient
from farandole.testing.simulation.jetstream import (
    ANSWER,
    DELIVERY,
    EPOCH,
    MAX_PAYLOAD,
    NO_RESPONDERS,
    RECEIPT,
    STATUS,
    JetStream,
    Storage,
    header_bytes,
)
from farandole.testing.simulation.loop import VirtualTimeLoop
from farandole.testing.simulation.network import Connection, Pipe, Weather
from farandole.testing.simulation.subjects import matches

_LOSSES = {
    DELIVERY: "delivery lost",
    RECEIPT: "receipt lost",
    ANSWER: "answer lost",
    STATUS: "status lost",
}


@dataclass(slots=True, eq=False)
class _Subscription:
    connection: Connection
    number: int
    subject: str
    queue: str


class SimulatedBroker:
    """The server. Clients of it come from `client`; faults are methods, and `weather`.

    `strikes` counts what went wrong, by kind; `on_fault(kind, detail)` is called with each as it happens.
    """

    def __init__(self, loop: VirtualTimeLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.weather = Weather()
        self.strikes: Counter[str] = Counter()
        self.on_fault: Callable[[str, str], None] = lambda _kind, _detail: None
        self.jetstream = JetStream(loop, random, self.weather, self, self.strikes)
        self.is_up = True
        self._connections: list[Connection] = []
        self._clients = 0
        self._exact: dict[str, list[_Subscription]] = {}
        """Subscriptions by their subject, where it has no wildcard."""
        self._below: dict[str, list[_Subscription]] = {}
        """Subscriptions of `<prefix>.*`, by the prefix, as those of inboxes are."""
        self._patterns: list[tuple[Sequence[str], _Subscription]] = []
        """All others."""

    # what a simulation asks

    def client(self, name: str, gate: Callable[[str], Awaitable[None]] | None = None) -> SimulatedClient:
        """A client of this server. `await gate(point)` comes before and after everything that passes between the
        process and the broker: there it can be suspended, or end.
        """
        self._clients += 1
        return SimulatedClient(self, name, self._clients, gate)

    def now(self) -> datetime:
        """The server's clock, in UTC."""
        return EPOCH + timedelta(seconds=self.loop.time())

    @property
    def stored(self) -> Sequence[StoredMessage]:
        """What `EVENTS` holds, in order; nothing where it does not exist."""
        return self._stored_in(EVENTS)

    @property
    def dead_letters(self) -> Sequence[StoredMessage]:
        """What `DEADLETTERS` holds, in order."""
        return self._stored_in(DEADLETTERS)

    def _stored_in(self, stream: str) -> Sequence[StoredMessage]:
        found = self.jetstream.streams.get(stream)
        return found.stored if found else ()

    def provision(self) -> None:
        """Makes Farandole's streams at once, as `farandole provision` does."""
        for name, config in STREAMS.items():
            self.jetstream.create_stream(name, config)

    @property
    def connections(self) -> Sequence[str]:
        """The names of the clients that are connected, in the order in which they came."""
        return [connection.name for connection in self._connections]

    # faults

    def cut(self, name: str | None = None) -> None:
        """Cuts the connections of a client, or all; what is under way on them is lost both ways. Clients come back."""
        for connection in self._of(name):
            self._note("connection cut", connection.name)
            self._drop(connection)

    def half_open(self, name: str, server_seconds: float = 30.0) -> None:
        """Nothing passes any more, and nobody is told. The client notices in a few seconds; the server, which sends
        what is for it into the void until then, after `server_seconds`.
        """
        for connection in self._of(name):
            self._note("connection half-open", connection.name)
            connection.up.break_()
            connection.down.break_()
            self._later(2.0 + self.random.random(), connection.client.lose, connection)
            self._later(server_seconds, self._forget, connection)

    def hold(self, name: str, seconds: float) -> None:
        """Nothing that is sent from now on arrives within `seconds`, either way. Beyond two, rather cut."""
        for connection in self._of(name):
            self._note("connection held up", connection.name)
            until = self.loop.time() + seconds
            connection.up.hold(until)
            connection.down.hold(until)

    def restart(self, seconds: float) -> None:
        """The server ends as by SIGKILL, and is there again after `seconds`."""
        if not self.is_up:
            return
        self._note("server restarted", f"for {seconds:.3f} s")
        self.is_up = False
        self.jetstream.stop()
        for connection in list(self._connections):
            self._drop(connection)
        self._later(seconds, self._come_up)

    def _come_up(self) -> None:
        self.is_up = True

    def change_leader(self, seconds: float) -> None:
        """The streams have no leader for `seconds`; of what was being stored some is, some is not, and nobody knows."""
        if not self.jetstream.has_leader:
            return
        self._note("leader changed", f"for {seconds:.3f} s")
        self.jetstream.lose_leader()
        self._later(seconds, self.jetstream.elect_leader)

    def fill_disk(self) -> None:
        """Nothing is stored until `free_disk`: publications are refused for the server's limit, or not answered at all
        since the disk itself is full. Which of the two is drawn.
        """
        if self.jetstream.storage is Storage.ROOM:
            self.jetstream.storage = self.random.choice([Storage.LIMIT, Storage.FULL])
            self._note("disk full", self.jetstream.storage.name)

    def free_disk(self) -> None:
        """There is room again. A server whose writes had failed is restarted: it stores nothing before."""
        storage, self.jetstream.storage = self.jetstream.storage, Storage.ROOM
        if storage is Storage.FULL:
            self.restart(self.random.uniform(0.1, 1.0))

    def forget_message_ids(self) -> None:
        """The windows of duplicates are emptied: what is published again is stored again."""
        self._note("message ids forgotten", "")
        self.jetstream.forget_message_ids()

    def _note(self, kind: str, detail: str) -> None:
        self.strikes[kind] += 1
        self.on_fault(kind, detail)

    def _of(self, name: str | None) -> list[Connection]:
        return [connection for connection in self._connections if name is None or connection.name == name]

    def _later(self, seconds: float, callback: Callable[..., None], *arguments: object) -> None:
        self.loop.schedule(self.loop.time() + seconds, callback, *arguments)

    # what clients do

    def accept(self, client: SimulatedClient) -> Connection | None:
        """A connection, or None where the server does not answer."""
        if not self.is_up:
            return None
        connection = Connection(client, client.name, self._pipe(client.name), self._pipe(client.name))
        self._connections.append(connection)
        return connection

    def _pipe(self, name: str) -> Pipe:
        return Pipe(self.loop, self.random, self.weather, lambda: self._note("message held up", name))

    def subscribe(self, connection: Connection, number: int, subject: str, queue: str) -> None:
        """A client's SUB has arrived."""
        if number in connection.subscriptions:
            return
        subscription = _Subscription(connection, number, subject, queue)
        connection.subscriptions[number] = subscription
        prefix, _, last = subject.rpartition(".")
        if "*" not in subject and ">" not in subject:
            self._exact.setdefault(subject, []).append(subscription)
        elif last == "*" and "*" not in prefix:
            self._below.setdefault(prefix, []).append(subscription)
        else:
            self._patterns.append((subject.split("."), subscription))

    def unsubscribe(self, connection: Connection, number: int) -> None:
        """A client's UNSUB has arrived."""
        subscription = connection.subscriptions.pop(number, None)
        if subscription is not None:
            self._remove(subscription)

    def _remove(self, subscription: _Subscription) -> None:
        prefix = subscription.subject.rpartition(".")[0]
        for table, key in ((self._exact, subscription.subject), (self._below, prefix)):
            listed = table.get(key)
            if listed is not None and subscription in listed:
                listed.remove(subscription)
                if not listed:
                    del table[key]
                return
        self._patterns = [(tokens, other) for tokens, other in self._patterns if other is not subscription]

    def publish(
        self, connection: Connection, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes
    ) -> None:
        """A client's PUB has arrived."""
        if len(data) > MAX_PAYLOAD // 2 and len(data) + header_bytes(headers or {}) > MAX_PAYLOAD:
            self._refuse(connection)
            return
        if self._loses(subject, connection):
            return
        taken = self.jetstream.takes(subject, reply, headers, data)
        heard = self._route(subject, subject, reply, headers, data)
        if reply and not taken and not heard:
            self.send(STATUS, reply, b"", {**NO_RESPONDERS, "Nats-Subject": subject})

    def _refuse(self, connection: Connection) -> None:
        """The server closes a connection over which something came that breaks the protocol."""
        connection.up.break_()
        connection.down.send(connection.client.give_up)
        self._forget(connection)

    def _loses(self, subject: str, connection: Connection) -> bool:
        """Whether a message that has come is dropped."""
        if not self.weather.losses or self.random.random() >= self.weather.losses:
            return False
        kind = (
            "acknowledgement" if subject.startswith("$JS.ACK.") else "request" if subject[0] == "$" else "publication"
        )
        self._note(f"{kind} lost", f"{subject} of {connection.name}")
        return True

    def leave(self, connection: Connection) -> None:
        """A client ends its connection; what it has sent still arrives."""
        connection.down.break_()
        connection.up.send(self._forget, connection)

    # what JetStream needs

    def send(
        self, kind: str, inbox: str, data: bytes, headers: Mapping[str, str] | None, subject: str = "", reply: str = ""
    ) -> None:
        """See `jetstream.Network.send`."""
        if self.weather.losses and self.random.random() < self.weather.losses:
            self._note(_LOSSES[kind], subject or inbox)
            return
        self._route(inbox, subject or inbox, reply, headers, data)

    def is_heard(self, inbox: str) -> bool:
        """See `jetstream.Network.is_heard`."""
        return inbox in self._exact or next(self._listeners(inbox), None) is not None

    # routing

    def _listeners(self, subject: str) -> Iterator[_Subscription]:
        yield from self._exact.get(subject, ())
        if self._below:
            yield from self._below.get(subject.rpartition(".")[0], ())
        if self._patterns:
            tokens = subject.split(".")
            for pattern, subscription in self._patterns:
                if matches(pattern, tokens):
                    yield subscription

    def _route(self, to: str, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes) -> bool:
        """Sends a message to all who listen on `to`, and to one of each queue; whether there was anyone."""
        queues: dict[str, list[_Subscription]] = {}
        heard = False
        for subscription in self._listeners(to):
            heard = True
            if subscription.queue:
                queues.setdefault(subscription.queue, []).append(subscription)
            else:
                self._hand(subscription, subject, reply, headers, data)
        for members in queues.values():
            self._hand(self.random.choice(members), subject, reply, headers, data)
        return heard

    def _hand(
        self, subscription: _Subscription, subject: str, reply: str, headers: Mapping[str, str] | None, data: bytes
    ) -> None:
        connection = subscription.connection
        connection.down.send(connection.client.receive, connection, subscription.number, subject, reply, headers, data)

    # ends of connections

    def _drop(self, connection: Connection) -> None:
        """Ends a connection on both sides."""
        connection.up.break_()
        connection.down.break_()
        self._forget(connection)
        self._later(self.weather.latency_seconds[0], connection.client.lose, connection)

    def _forget(self, connection: Connection) -> None:
        """Ends a connection on the server's side."""
        if connection in self._connections:
            self._connections.remove(connection)
        for subscription in connection.subscriptions.values():
            self._remove(subscription)
        connection.subscriptions.clear()

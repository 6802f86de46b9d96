"""Connections between clients and the server: bytes arrive late, in order, or never."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from farandole.testing.simulation.loop import VirtualTimeLoop


@dataclass(slots=True)
class Weather:
    """How badly the network and the server behave. May be changed at any time."""

    latency_seconds: tuple[float, float] = (0.0001, 0.001)
    """Of a message, one way: at least, at most."""
    delays: float = 0.0
    """The share of messages that are held up, and with them all that are sent after them over the same connection."""
    delay_seconds: tuple[float, float] = (0.01, 0.5)
    losses: float = 0.0
    """The share of single messages that the server drops, of each kind, while their connection stands."""
    store_seconds: tuple[float, float] = (0.0001, 0.002)
    """How long a stream takes to store a publication: at least, at most. They are stored in order."""
    work_seconds: tuple[float, float] = (0.0, 0.001)
    """How long the server takes to turn to a request or a pull: at least, at most. In no order."""
    replica_lag_seconds: float = 0.0
    """How old what a direct read sees may be: a replica of the stream, which is behind, answers it too."""


class Pipe:
    """One direction of a connection."""

    __slots__ = ("_held_until", "_items", "_last", "_loop", "_on_delay", "_random", "_weather", "is_open")

    def __init__(self, loop: VirtualTimeLoop, random: Random, weather: Weather, on_delay: Callable[[], None]) -> None:
        self._loop = loop
        self._random = random.random
        self._weather = weather
        self._on_delay = on_delay
        self._items: deque[tuple[float, Callable[..., None], tuple[Any, ...]]] = deque()
        self._last = 0.0
        self._held_until = 0.0
        self.is_open = True

    def send(self, receive: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401 - as `call_soon` has it
        """Calls `receive` with the arguments when they have arrived; never where the pipe breaks before."""
        if not self.is_open:
            return
        weather, random = self._weather, self._random
        least, most = weather.latency_seconds
        at = self._loop.time() + least + (most - least) * random()
        if weather.delays and random() < weather.delays:
            least, most = weather.delay_seconds
            at += least + (most - least) * random()
            self._on_delay()
        at = max(at, self._last, self._held_until)
        self._last = at
        self._items.append((at, receive, arguments))
        if len(self._items) == 1:
            self._loop.schedule(at, self._arrive)

    def hold(self, until: float) -> None:
        """Nothing that is sent from now on arrives before that time."""
        self._held_until = until

    def break_(self) -> None:
        """What is under way is lost, and what is sent after it."""
        self.is_open = False
        self._items.clear()

    def _arrive(self) -> None:
        items, now = self._items, self._loop.time()
        while items and items[0][0] <= now:
            _, receive, arguments = items[0]
            receive(*arguments)
            if items:  # the pipe may have been broken meanwhile
                items.popleft()
        if items:
            self._loop.schedule(items[0][0], self._arrive)


class Connection:
    """A client's connection, as both ends have it."""

    __slots__ = ("client", "down", "name", "subscriptions", "up")

    def __init__(self, client: Any, name: str, up: Pipe, down: Pipe) -> None:  # noqa: ANN401 - the server knows no client
        self.client = client
        self.name = name
        self.up = up
        """To the server."""
        self.down = down
        """To the client."""
        self.subscriptions: dict[int, Any] = {}
        """The server's, by number."""

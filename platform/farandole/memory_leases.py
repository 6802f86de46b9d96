"""Leases in memory: for the processes of a simulated world, and for tests."""

from __future__ import annotations

from collections.abc import Callable, Collection

from farandole.leases import TIME_TO_LIVE_SECONDS, Register, Replica, Tenure, given_back, left, renewed


class MemoryLeases:
    """`farandole.leases.Leases` of one service, shared by the objects that stand for its replicas."""

    def __init__(self, clock: Callable[[], float], *, time_to_live_seconds: float = TIME_TO_LIVE_SECONDS) -> None:
        """`clock` gives seconds that never go back."""
        self._clock = clock
        self._time_to_live = time_to_live_seconds
        self._register = Register()

    async def join(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.join`."""
        return self._renew(replica, lanes, is_able=is_able, joins=True)

    async def renew(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """See `Leases.renew`."""
        return self._renew(replica, lanes, is_able=is_able, joins=False)

    async def give_back(self, replica: Replica, lanes: Collection[int]) -> None:
        """See `Leases.give_back`."""
        self._register = given_back(self._register, replica, lanes)

    async def leave(self, replica: Replica) -> None:
        """See `Leases.leave`."""
        self._register = left(self._register, replica)

    def living(self) -> set[str]:
        """The names of the replicas that live."""
        return self._register.living(_milliseconds(self._clock()))

    def _renew(self, replica: Replica, lanes: int, *, is_able: bool, joins: bool) -> Tenure:
        now = self._clock()
        self._register, tenure = renewed(
            self._register,
            replica,
            lanes,
            is_able=is_able,
            joins=joins,
            now=_milliseconds(now),
            expires=_milliseconds(now + self._time_to_live),
        )
        return tenure


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)

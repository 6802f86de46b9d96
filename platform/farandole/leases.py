"""Leases: which replica of a service works on which of its lanes.

A replica announces itself in the service's own database, and renews that before its time to live has passed, by the
database's clock. It takes its share of the lanes, as even as can be, and gives back what others lack. Who has not
renewed in time has lost its lanes to whoever comes first.

A lease keeps two replicas from working against each other; it keeps nothing safe. A process that was suspended may
write after its lease has run out, so every commit is fenced by compare-and-set on (partition, epoch, position).

The port, its values, and the rules as pure functions, which every implementation applies in one transaction.
`farandole.testing.LeasesConformance` checks them.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Protocol

from farandole.errors import FencedError, LanesDifferError

TIME_TO_LIVE_SECONDS = 1.2
"""For how long a replica that does not renew keeps its lanes."""
RENEWAL_SECONDS = 0.4
"""How often it renews: two may fail, or come late, before it loses anything."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a service."""

    name: str
    """`FARANDOLE_REPLICA`."""
    run: str
    """Tells the process from an earlier or a later one of the same name: an id of its own."""

    @classmethod
    def begun(cls, name: str) -> Replica:
        """A process that begins."""
        return cls(name, uuid.uuid4().hex[:12])

    def application_name(self, service: str) -> str:
        """What its sessions are called at a database server: whoever takes over from it ends those that hang."""
        return f"{self.run} {service}/{self.name}"


@dataclass(frozen=True, slots=True)
class Tenure:
    """What a replica has, and who else is there, once it has renewed."""

    lanes: frozenset[int] = frozenset()
    """The lanes that it holds."""
    due: frozenset[int] = frozenset()
    """Those of them that are another's share: it is to stop working on them, and then to give them back."""
    replicas: tuple[str, ...] = ()
    """The names of all that live, its own too."""


class Leases(Protocol):
    """Where the replicas of one service tell each other who works on what.

    Each call is one transaction, and calls of all replicas are serialized: each sees what every earlier one has done.
    Every call raises `StoreUnavailableError` where the store can't be used now.
    """

    async def join(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """Announces a process that begins, and takes what is its share and nobody has.

        What a process of the same name held is its own at once: a service that is started again waits for nothing.
        `lanes` is how many there are; raises `LanesDifferError`, and changes nothing, where a replica that lives has
        another number. `is_able` is for `renew`.
        """
        ...

    async def renew(self, replica: Replica, lanes: int, *, is_able: bool) -> Tenure:
        """Goes on for another time to live, and takes what is its share and nobody has.

        Whoever is not able to work, as without a broker, has no share as long as others are able.

        Raises `FencedError`, and changes nothing, where a later process of the same name lives: this one has nothing
        any more until that one has ended. Raises `LanesDifferError` as `join` does.
        """
        ...

    async def give_back(self, replica: Replica, lanes: Collection[int]) -> None:
        """Lets go of these lanes; those that are not the replica's are passed over."""
        ...

    async def leave(self, replica: Replica) -> None:
        """Lets go of everything: the process ends. Does nothing where a later process of the same name has taken
        over."""
        ...


@dataclass(frozen=True, slots=True)
class Member:
    """A replica as it has announced itself."""

    name: str
    run: str
    lanes: int
    """How many lanes the service has, by its settings."""
    is_able: bool
    expires: int
    """When it has lost everything, in milliseconds of the store's clock."""


@dataclass(frozen=True, slots=True)
class Register:
    """All that the replicas of a service have told each other."""

    members: Mapping[str, Member] = field(default_factory=dict)
    """By name."""
    holders: Mapping[int, str] = field(default_factory=dict)
    """By lane that somebody holds."""

    @property
    def runs(self) -> set[str]:
        """The processes that have announced themselves."""
        return {member.run for member in self.members.values()}

    def living(self, now: int) -> set[str]:
        """The names of the replicas that live, in milliseconds of the store's clock."""
        return {name for name, member in self.members.items() if member.expires > now}


def shares(lanes: int, contenders: Collection[str], holders: Mapping[int, str]) -> dict[int, str]:
    """Who is to hold each lane: no one more than one above another, and as few lanes change hands as can be. Pure.

    Empty where there are no contenders.
    """
    names = sorted(contenders)
    if not names:
        return {}
    held = {name: [lane for lane in range(lanes) if holders.get(lane) == name] for name in names}
    least, odd = divmod(lanes, len(names))
    quotas = {  # whoever holds most may have one more
        name: least + (place < odd) for place, name in enumerate(sorted(names, key=lambda name: -len(held[name])))
    }
    kept = {lane: name for name in names for lane in held[name][: quotas[name]]}
    free = iter([lane for lane in range(lanes) if lane not in kept])
    for name in names:
        kept |= dict.fromkeys(islice(free, quotas[name] - min(quotas[name], len(held[name]))), name)
    return kept


def renewed(
    register: Register, replica: Replica, lanes: int, *, is_able: bool, joins: bool, now: int, expires: int
) -> tuple[Register, Tenure]:
    """What `Leases.join` or `Leases.renew` make of the register, and the answer. Pure; raises as they do."""
    members = {member.name: member for member in register.members.values() if member.expires > now}
    before = members.pop(replica.name, None)
    if before is not None and before.run != replica.run and not joins:
        raise FencedError(
            f"another process has taken over as replica {replica.name}: stop one of the two, or give one another "
            "FARANDOLE_REPLICA"
        )
    _refuse_other_lanes(members.values(), lanes)
    members[replica.name] = Member(replica.name, replica.run, lanes, is_able, expires)
    holders = {lane: name for lane, name in register.holders.items() if name in members and lane < lanes}
    able = [name for name, member in members.items() if member.is_able]
    target = shares(lanes, able or members, holders)
    own_share = {lane for lane, name in target.items() if name == replica.name}
    holders |= {lane: replica.name for lane in own_share if lane not in holders}
    held = frozenset(lane for lane, name in holders.items() if name == replica.name)
    return Register(members, holders), Tenure(held, held - own_share, tuple(sorted(members)))


def given_back(register: Register, replica: Replica, lanes: Collection[int]) -> Register:
    """What `Leases.give_back` makes of the register. Pure."""
    if not _is_current(register, replica):
        return register
    kept = {lane: name for lane, name in register.holders.items() if name != replica.name or lane not in lanes}
    return replace(register, holders=kept)


def left(register: Register, replica: Replica) -> Register:
    """What `Leases.leave` makes of the register. Pure."""
    if not _is_current(register, replica):
        return register
    return Register(
        {name: member for name, member in register.members.items() if name != replica.name},
        {lane: name for lane, name in register.holders.items() if name != replica.name},
    )


def _is_current(register: Register, replica: Replica) -> bool:
    member = register.members.get(replica.name)
    return member is not None and member.run == replica.run


def _refuse_other_lanes(others: Iterable[Member], lanes: int) -> None:
    other = next((member for member in others if member.lanes != lanes), None)
    if other is not None:
        raise LanesDifferError(
            f"the replica {other.name} of this service runs with FARANDOLE_LANES={other.lanes}, and this one with "
            f"{lanes}: give all the same number; to change it, stop all of them first"
        )

"""Doing what goes wrong: each kind of fault, done to the world of a run at the time that was drawn for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from random import Random

from farandole.definition import Definition
from farandole.envelope import StoredMessage
from farandole.lifecycle import CORRELATOR
from farandole.testing.simulation.faults import Fault
from farandole.testing.simulation.process import Process
from farandole.testing.simulation.stage import Running, Service, Stage

_MOST_GATES = 40
"""A fault at a gate strikes within so many of them."""
_SECONDS = (0.1, 3.0)
"""How long something lasts that lasts a while."""
_SUSPENDED_SECONDS = (0.05, 4.0)
_HELD_SECONDS = (-0.6, 2.0)
"""How far from the deadline of a saga someone goes on who was held up."""
_HELD_GATES = 25
_LOOK_SECONDS = 0.1
_ANSWERED = "answered"
"""The gate behind an answer of the broker, such as which commit event it has stored last."""
_RACES_AT_AN_ANSWER = 0.7
_RACES_WITH_A_TAKEOVER = 0.3
"""In this share of the races another correlator takes over meanwhile."""
_RACE_GATES = 25
_RACE_SECONDS = (0.3, 1.8)
"""How long the correlator is suspended in a race, and"""
_COMMIT_SECONDS = (0.0, 0.25)
"""when in this time the service goes on that publishes the commit event."""
_CLOCK_SECONDS = (-2.0, 2.0, -40.0, 40.0, -3600.0, 3600.0, -86400.0, 86400.0)
_RAISING_SECONDS = (0.1, 4.0)
_HALF_OPEN_SECONDS = (1.0, 10.0)
_LEADERLESS_SECONDS = (0.2, 5.0)
_DOWN_SECONDS = (0.05, 3.0)

_FROM_BROKER: Mapping[Fault, tuple[str, ...]] = {
    Fault.CUT: ("connection cut",),
    Fault.HALF_OPEN: ("connection half-open",),
    Fault.DROP: (
        "delivery lost", "receipt lost", "answer lost", "status lost",
        "acknowledgement lost", "request lost", "publication lost",
    ),
    Fault.SLOW_NETWORK: ("message held up",),
    Fault.BROKER_RESTART: ("server restarted",),
    Fault.LEADER_CHANGE: ("leader changed",),
    Fault.BROKER_FULL: ("publication refused by a full disk",),
    Fault.FORGET_DUPLICATES: ("message ids forgotten",),
}  # fmt: skip
"""What the simulated broker counts itself, by its own names."""


class Striking:
    """Carries out the faults of one run."""

    def __init__(self, stage: Stage, random: Random, publish_again: Callable[[], bool]) -> None:
        """`publish_again` publishes once more what starts some saga, where something was published already."""
        self._stage = stage
        self._random = random
        self._publish_again = publish_again
        self._held: set[Process] = set()
        self.is_over = False
        self._actions: Mapping[Fault, Callable[[Service], None]] = {
            Fault.KILL: self._kill,
            Fault.KILL_AT_A_GATE: self._kill_at_a_gate,
            Fault.SUSPEND: self._suspend,
            Fault.TAKEOVER: self._take_over,
            Fault.OVERLAP: self._overlap,
            Fault.HELD_UNTIL_LATE: self._hold_until_late,
            Fault.RACE: self._begin_race,
            Fault.CLOCK_JUMP: self._set_clock,
            Fault.HANDLER_RAISES: partial(self._have_handlers_raise, Fault.HANDLER_RAISES),
            Fault.HANDLER_SNOOZES: partial(self._have_handlers_raise, Fault.HANDLER_SNOOZES),
            Fault.DEPENDENCY_DOWN: partial(self._have_handlers_raise, Fault.DEPENDENCY_DOWN),
            Fault.DATABASE_FULL: partial(self._trouble, Fault.DATABASE_FULL),
            Fault.DATABASE_READ_ONLY: partial(self._trouble, Fault.DATABASE_READ_ONLY),
            Fault.DATABASE_LOCKED: partial(self._trouble, Fault.DATABASE_LOCKED),
            Fault.DATABASE_SLOW: partial(self._trouble, Fault.DATABASE_SLOW),
            Fault.COMMIT_FAILS: partial(self._set_fate, Fault.COMMIT_FAILS),
            Fault.COMMIT_UNKNOWN: partial(self._set_fate, Fault.COMMIT_UNKNOWN),
            Fault.CUT: self._cut,
            Fault.HALF_OPEN: self._half_open,
            Fault.DROP: self._drop,
            Fault.SLOW_NETWORK: self._slow_network,
            Fault.BROKER_RESTART: self._restart_broker,
            Fault.LEADER_CHANGE: self._change_leader,
            Fault.BROKER_FULL: self._fill_broker,
            Fault.FORGET_DUPLICATES: self._forget_duplicates,
            Fault.SAME_AGAIN: self._same_again,
        }

    def schedule(self, moments: Sequence[float]) -> Counter[Fault]:
        """Draws what is to strike, and has it strike when it is time; returns how often each kind is to. `moments` are
        when sagas begin."""
        drawn = self._stage.scenario.faults.drawn(self._random, moments)
        for at, fault in drawn:
            self._stage.loop.call_later(at, self._strike, fault)
        return Counter(fault for _, fault in drawn)

    def heal(self) -> None:
        """Ends what is left of all faults, but for who is held up until a deadline."""
        self.is_over = True
        stage = self._stage
        stage.broker.free_disk()
        stage.broker.weather.losses = stage.broker.weather.delays = 0.0
        for service in stage.services.values():
            service.raises = None
            service.disk.fates.clear()
            for fault in (Fault.DATABASE_FULL, Fault.DATABASE_READ_ONLY, Fault.DATABASE_LOCKED, Fault.DATABASE_SLOW):
                self._end_trouble(service, fault)
            for running in service.processes:
                if running.process not in self._held:
                    running.process.resume()

    def count(self) -> None:
        """Adds to the stage's strikes what the broker has counted."""
        for fault, kinds in _FROM_BROKER.items():
            if count := sum(self._stage.broker.strikes[kind] for kind in kinds):
                self._stage.strikes[fault] += count

    @property
    def holds(self) -> bool:
        """Whether someone is still held up."""
        return bool(self._held)

    def _strike(self, fault: Fault) -> None:
        if not self.is_over:
            self._actions[fault](self._random.choice(list(self._stage.services.values())))

    def _one_of(self, service: Service) -> Running | None:
        return self._random.choice(service.processes) if service.processes else None

    def _for_a_while(self, end: Callable[[], None], between: tuple[float, float] = _SECONDS) -> None:
        self._stage.loop.call_later(self._random.uniform(*between), end)

    def _kill(self, service: Service) -> None:
        if running := self._one_of(service):
            self._stage.struck(Fault.KILL, running.process.name, "")
            self._stage.kill(service, running)

    def _kill_at_a_gate(self, service: Service) -> None:
        def strike(running: Running, point: str) -> None:
            self._stage.struck(Fault.KILL_AT_A_GATE, running.process.name, point)
            self._stage.kill(service, running)

        self._at_a_gate(service, strike)

    def _suspend(self, service: Service) -> None:
        def strike(running: Running, point: str) -> None:
            self._stage.struck(Fault.SUSPEND, running.process.name, point)
            running.process.suspend()
            self._for_a_while(lambda: self._resume(running), _SUSPENDED_SECONDS)

        self._at_a_gate(service, strike)

    def _take_over(self, service: Service) -> None:
        def strike(running: Running, point: str) -> None:
            self._stage.struck(Fault.TAKEOVER, running.process.name, point)
            running.process.suspend()
            self._stage.start(service)
            self._for_a_while(lambda: self._resume(running), _SUSPENDED_SECONDS)

        self._at_a_gate(service, strike)

    def _overlap(self, service: Service) -> None:
        if service.processes:
            self._stage.struck(Fault.OVERLAP, service.name, "")
            self._stage.start(service)

    def _hold_until_late(self, _service: Service) -> None:
        """Holds up a participant that has a step of a saga before its commit event, or the correlator."""
        stage, random = self._stage, self._random
        definition = random.choice(list(stage.scenario.definitions))
        names = {step.participant for step in definition.steps[: definition.pivot + 1]}
        pivot = definition.steps[definition.pivot].participant
        held = [service for name, service in stage.services.items() if name in names or name == CORRELATOR]
        if pivot in stage.services:
            held += [stage.services[pivot]] * len(held)
        service = random.choice(held)
        until = self._first_start(definition.initiating_event) + definition.deadline.total_seconds()

        def strike(running: Running, point: str) -> None:
            seconds = until + random.uniform(*_HELD_SECONDS) - stage.loop.time()
            if seconds <= 0:
                return
            stage.struck(Fault.HELD_UNTIL_LATE, running.process.name, f"for {seconds:.3f} s, {point}")
            running.process.suspend()
            self._held.add(running.process)
            stage.loop.call_later(seconds, self._release, running)

        self._at_a_gate(service, strike, most=_HELD_GATES)

    def _begin_race(self, _service: Service) -> None:
        """Holds up whoever publishes the commit event of some saga until the correlator has decided to time it out."""
        stage, random = self._stage, self._random
        definition = random.choice(list(stage.scenario.definitions))
        pivot = stage.services.get(definition.steps[definition.pivot].participant)
        running = self._one_of(pivot) if pivot is not None else None
        if running is None or running.process.is_suspended:
            return
        running.process.suspend()
        self._held.add(running.process)
        stage.loop.call_later(definition.deadline.total_seconds() + _HELD_SECONDS[1], self._release, running)
        self._await_deadline(definition, running)

    def _await_deadline(self, definition: Definition, pivot: Running) -> None:
        """Has the race begin at the deadline of the first saga that may still commit, as soon as there is one."""
        stage = self._stage
        if pivot.process not in self._held:
            return
        committed = {_key_of(message) for message in stage.broker.stored if message.type == definition.commit_event}
        for message in stage.broker.stored:
            seconds = (message.time + definition.deadline - stage.now()).total_seconds()
            if message.type == definition.initiating_event and _key_of(message) not in committed and seconds > 0:
                stage.loop.call_later(seconds, self._race, pivot)
                return
        stage.loop.call_later(_LOOK_SECONDS, self._await_deadline, definition, pivot)

    def _race(self, pivot: Running) -> None:
        """The deadline has come: suspends the correlator on its way to the time-out, and lets the pivot go on."""
        stage, random = self._stage, self._random
        service = stage.services[CORRELATOR]
        running = self._one_of(service)
        if running is None or running.process.is_suspended or pivot.process not in self._held:
            return

        def strike(point: str) -> None:
            stage.struck(Fault.RACE, running.process.name, point)
            running.process.suspend()
            self._held.add(running.process)
            with_takeover = random.random() < _RACES_WITH_A_TAKEOVER
            if with_takeover:
                stage.start(service)
            seconds = random.uniform(*(_RACE_SECONDS if with_takeover else _COMMIT_SECONDS))
            stage.loop.call_later(seconds, self._release, pivot)
            stage.loop.call_later(random.uniform(*_RACE_SECONDS), self._release, running)

        if random.random() < _RACES_AT_AN_ANSWER:
            running.process.strike_after(1, strike, point=_ANSWERED)
        else:
            running.process.strike_after(random.randint(1, _RACE_GATES), strike)

    def _first_start(self, event_type: str) -> float:
        """When the first saga of that initiating event began, in virtual seconds; now, where none has."""
        stage = self._stage
        began = (message.time for message in stage.broker.stored if message.type == event_type)
        first = next(began, stage.now())
        return (first - stage.now()).total_seconds() + stage.loop.time()

    def _release(self, running: Running) -> None:
        self._held.discard(running.process)
        running.process.resume()

    def _resume(self, running: Running) -> None:
        if running.process not in self._held:
            running.process.resume()

    def _at_a_gate(self, service: Service, strike: Callable[[Running, str], None], *, most: int = _MOST_GATES) -> None:
        """Strikes as a process of the service comes to one of its next gates."""
        if running := self._one_of(service):

            def at(point: str) -> None:
                if not self.is_over and not running.process.is_dead and not running.process.is_suspended:
                    strike(running, point)

            running.process.strike_after(self._random.randint(1, most), at)

    def _set_clock(self, service: Service) -> None:
        seconds = self._random.choice(_CLOCK_SECONDS) * self._random.random()
        service.clock_offset += timedelta(seconds=seconds)
        self._stage.struck(Fault.CLOCK_JUMP, service.name, f"by {seconds:.3f} s")

    def _have_handlers_raise(self, fault: Fault, service: Service) -> None:
        service.raises = fault
        self._for_a_while(lambda: setattr(service, "raises", None), _RAISING_SECONDS)

    def _trouble(self, fault: Fault, service: Service) -> None:
        service.disk.troubles.add(fault)
        if service.rehearsal is not None and fault is Fault.DATABASE_FULL:
            service.rehearsal.disk.set_full(is_full=True)
        if service.rehearsal is not None and fault is Fault.DATABASE_READ_ONLY:
            service.rehearsal.disk.set_read_only(is_read_only=True)
        self._for_a_while(lambda: self._end_trouble(service, fault))

    def _end_trouble(self, service: Service, fault: Fault) -> None:
        if fault not in service.disk.troubles:
            return
        service.disk.troubles.discard(fault)
        if service.rehearsal is not None and fault is Fault.DATABASE_FULL:
            service.rehearsal.disk.set_full(is_full=False)
        if service.rehearsal is not None and fault is Fault.DATABASE_READ_ONLY:
            service.rehearsal.disk.set_read_only(is_read_only=False)

    def _set_fate(self, fault: Fault, service: Service) -> None:
        service.disk.fates.append(fault)

    def _cut(self, service: Service) -> None:
        if running := self._one_of(service):
            self._stage.broker.cut(running.process.name)

    def _half_open(self, service: Service) -> None:
        if running := self._one_of(service):
            self._stage.broker.half_open(running.process.name, self._random.uniform(*_HALF_OPEN_SECONDS))

    def _drop(self, _service: Service) -> None:
        weather = self._stage.broker.weather
        weather.losses = self._random.choice((0.02, 0.1, 0.3))
        self._for_a_while(lambda: setattr(weather, "losses", 0.0))

    def _slow_network(self, _service: Service) -> None:
        weather = self._stage.broker.weather
        weather.delays = self._random.choice((0.02, 0.1, 0.5))
        self._for_a_while(lambda: setattr(weather, "delays", 0.0))

    def _restart_broker(self, _service: Service) -> None:
        self._stage.broker.restart(self._random.uniform(*_DOWN_SECONDS))

    def _change_leader(self, _service: Service) -> None:
        self._stage.broker.change_leader(self._random.uniform(*_LEADERLESS_SECONDS))

    def _fill_broker(self, _service: Service) -> None:
        self._stage.broker.fill_disk()
        self._for_a_while(self._stage.broker.free_disk)

    def _forget_duplicates(self, _service: Service) -> None:
        self._stage.broker.forget_message_ids()

    def _same_again(self, _service: Service) -> None:
        if self._publish_again():
            self._stage.struck(Fault.SAME_AGAIN, "customer", "")


def _key_of(message: StoredMessage) -> str:
    return message.headers.get("ce-correlationid", "")

"""What must hold at the end of a run, whatever happened during it.

Each invariant looks at the evidence and says what it found broken. One that found nothing to look at has shown nothing,
and counts as broken too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from choreography.v1.correlator_events_pb2 import EventUnreadable
from choreography.v1.dead_letter_events_pb2 import DeadLetterDiscarded, DeadLetterSuperseded
from choreography.v1.dead_letter_pb2 import DEAD_LETTER_STATE_OPEN
from choreography.v1.lifecycle_pb2 import StepVoided
from orders.v1.order_events_pb2 import OrderCreated
from tests.chaos.checker.choreographies import (
    CHOREOGRAPHIES,
    COMPENSATED,
    COMPLETED,
    DEAD_LETTER_REDRIVEN,
    ENDS,
    FAILED,
    FLEET,
    OF_PARTITIONS,
    OPENING_ITEMS,
    OPENING_STOCK,
    ORDERS,
    PARCELS,
    STEP_VOIDED,
    Step,
    amount_cents,
    fate,
    wanted_pieces,
)
from tests.chaos.checker.effects import ACTED, DONE, NOTED_REFUSALS, REFUSED, UNDONE
from tests.chaos.checker.evidence import LEADER_KILL, Effect, EndState, Event, Saga

CORRELATOR = "correlator"


@dataclass
class Look:
    """What an invariant has looked at, and what it found broken."""

    looked_at: int = 0
    broken: list[str] = field(default_factory=list)

    def that(self, holds: bool, otherwise: str) -> bool:
        """Notes one thing that must hold, and what to say where it does not; returns whether it does."""
        self.looked_at += 1
        if not holds:
            self.broken.append(otherwise)
        return holds


@dataclass(frozen=True, slots=True)
class Invariant:
    """Something that must hold at the end."""

    name: str
    says: str
    check: Callable[[EndState, Look], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one invariant."""

    invariant: Invariant
    looked_at: int
    broken: Sequence[str]

    @property
    def holds(self) -> bool:
        """Whether it held of everything, and there was something to hold of."""
        return self.looked_at > 0 and not self.broken


def judge(state: EndState) -> list[Verdict]:
    """Every invariant, checked."""
    verdicts: list[Verdict] = []
    for invariant in INVARIANTS:
        look = Look()
        invariant.check(state, look)
        verdicts.append(Verdict(invariant, look.looked_at, look.broken))
    return verdicts


# Nothing lost


def acknowledged_is_stored(state: EndState, look: Look) -> None:
    """The stream has every acknowledged publication, and every accepted call's event, and no gap."""
    for before, after in zip(state.sequences, state.sequences[1:], strict=False):
        look.that(after == before + 1, f"the stream has nothing between {before} and {after}")
    for unreadable in state.unreadable:
        where = f"{unreadable.sequence} {unreadable.subject}"
        look.that(unreadable.on_purpose, f"{where} can't be read: {unreadable.why}")
    garbage = {unreadable.sequence for unreadable in state.unreadable}
    for entry in state.ledger:
        if entry.how == "garbage":
            look.that(entry.sequence in garbage, f"{entry.key}: {entry.type} at {entry.sequence} is lost")
            continue
        message = entry.message
        if entry.sequence is None:
            stored = [e for e in state.by_key.get(entry.key, ()) if e.type == entry.type and e.body == message]
            look.that(bool(stored), f"{entry.key}: a call was accepted, and the stream has no such {entry.type}")
            continue
        event = state.by_sequence.get(entry.sequence)
        if look.that(event is not None, f"{entry.key}: {entry.type} was acknowledged as {entry.sequence}, and is lost"):
            assert event is not None
            # a repetition under the same message id is answered with where the first one stands
            is_it = (event.type, event.key) == (entry.type, entry.key) and (entry.duplicate or event.body == message)
            look.that(is_it, f"{entry.key}: {entry.sequence} is not the {entry.type} that was acknowledged")


def everything_is_processed(state: EndState, look: Look) -> None:
    """Each event was handled by whoever consumes it, or its dead letter is closed; histories lack none; none waits."""
    closed = {
        (event.body.participant, event.body.sequence)
        for event in state.events
        if isinstance(event.body, DeadLetterSuperseded | DeadLetterDiscarded)
    }
    for saga in state.sagas:
        for participant in saga.choreography.participants:
            consumed = saga.choreography.consumed_by(participant)
            inbox = state.books[participant].inbox
            for event in saga.events:
                if event.type in consumed:
                    look.that(
                        event.identity in inbox or (participant, event.sequence) in closed,
                        f"{saga.name}: {participant} has not dealt with {event.type} at {event.sequence}",
                    )
        record = state.records.sagas.get((saga.choreography.name, saga.key))
        if look.that(record is not None, f"{saga.name}: the correlator has no record"):
            assert record is not None
            missing = {event.sequence for event in saga.events} - set(record.history)
            look.that(not missing, f"{saga.name}: its history lacks the events at {sorted(missing)}")
    begun = {(saga.choreography.name, saga.key) for saga in state.sagas}
    for definition, key in state.records.sagas:
        look.that((definition, key) in begun, f"{definition} {key}: there is a record, and no event began it")
    for participant, books in state.books.items():
        waiting = [(row["key"], row["sequence"], row["error"]) for row in books.queued]
        look.that(not waiting, f"{participant} still has {len(waiting)} events in its queue, first {waiting[:1]}")


def dead_letters_are_closed(state: EndState, look: Look) -> None:
    """The correlator keeps one dead letter of each event that no one can read, and says so; nobody else keeps any."""
    told = Counter(
        event.body.sequence
        for event in state.events
        if isinstance(event.body, EventUnreadable) and event.source == CORRELATOR
    )
    letters = state.records.tables["dead_letter"]
    for unreadable in state.unreadable:
        where = f"{unreadable.sequence} {unreadable.subject}"
        look.that((CORRELATOR, unreadable.sequence) in letters, f"{where} can't be read, and is no dead letter")
        times = told[unreadable.sequence]
        look.that(times == 1, f"{where} was said to be unreadable {times} times")
    of_no_one = {unreadable.sequence for unreadable in state.unreadable}
    for (participant, sequence), row in letters.items():
        if participant == CORRELATOR:
            look.that(sequence in of_no_one, f"{row['subject']} at {sequence} is a dead letter, and can be read")
        else:
            is_open = row["state"] == DEAD_LETTER_STATE_OPEN
            look.that(not is_open, f"{participant} has given up on {row['subject']} at {sequence}")


def outboxes_are_empty(state: EndState, look: Look) -> None:
    """Whatever was decided was published."""
    depths = {name: books.outbox_depth for name, books in state.books.items()}
    for name, depth in {**depths, CORRELATOR: state.records.outbox_depth}.items():
        look.that(depth == 0, f"the outbox of {name} still has {depth} rows")


# Nothing twice


def effects_happen_once(state: EndState, look: Look) -> None:
    """No step, undoing or act has had its effect twice for a saga; none is undone before it was done."""
    for (step, key), effects in state.effects.items():
        counts = Counter((effect.direction, effect.part) for effect in effects)
        for (direction, part), count in counts.items():
            look.that(count == 1, f"{key}: {step} was {direction} {count} times{f' ({part})' if part else ''}")
        done = [effect.number for effect in effects if effect.direction == DONE]
        undone = [effect.number for effect in effects if effect.direction == UNDONE]
        if done and undone:
            look.that(max(done) < min(undone), f"{key}: {step} was done again after it had been undone")
        subjects = {effect.subject for effect in effects}
        look.that(len(subjects) == 1, f"{key}: {step} has the effects of {len(subjects)} runs: {sorted(subjects)}")


def events_happen_once(state: EndState, look: Look) -> None:
    """A participant has published at most one success or failure, one undoing and one voiding of a step, each once."""
    for saga in state.sagas:
        for step in saga.choreography.steps:
            told = _told(saga, step)
            groups = {"undone": told.undone, "voided": told.voided}
            if step.name == saga.choreography.irrevocable:
                # decided just too late, it is called off: then both stand in the stream
                groups |= {"decided": told.succeeded, "called off": told.failed}
                look.that(
                    not (told.succeeded and told.failed) or bool(saga.timed_out),
                    f"{saga.name}: {step.name} both succeeded and failed, and no time-out called it off",
                )
            else:
                groups |= {"ended": [*told.succeeded, *told.failed]}
            for what, events in groups.items():
                at = [event.sequence for event in events]
                times = len({event.id for event in events})
                look.that(times <= 1, f"{saga.name}: {step.name} was {what} {times} times, at {at}")


def effects_agree_with_events(state: EndState, look: Look) -> None:
    """What the services did is what they said, neither more nor less."""
    known = {saga.key for saga in state.sagas}
    for (step_name, key), effects in state.effects.items():
        look.that(key in known, f"{step_name} has {len(effects)} effects for {key}, of which no event tells")
    for saga in state.sagas:
        for step in saga.choreography.steps:
            effects = state.effects.get((step.name, saga.key), ())
            _agree(saga, step, _told(saga, step), {effect.direction for effect in effects}, look)


@dataclass(frozen=True, slots=True)
class _Told:
    """What a participant has published about one step of one saga."""

    succeeded: Sequence[Event]
    failed: Sequence[Event]
    undone: Sequence[Event]
    voided: Sequence[Event]


def _told(saga: Saga, step: Step) -> _Told:
    def of(event_type: str) -> list[Event]:
        return [event for event in saga.events if event.type == event_type and event.source == step.participant]

    return _Told(
        # whoever publishes it, the initiating event is nobody's answer to anything
        succeeded=of(step.success) if step.success != saga.choreography.start else [],
        failed=of(step.failure) if step.failure else [],
        undone=of(step.undone) if step.undone else [],
        voided=[e for e in of(STEP_VOIDED) if isinstance(e.body, StepVoided) and e.body.step == step.name],
    )


def _agree(saga: Saga, step: Step, told: _Told, did: set[str], look: Look) -> None:
    where = f"{saga.name}: {step.name}"
    if step.success == saga.choreography.start:
        look.that((DONE in did) != bool(told.voided), f"{where} did {sorted(did)}, voided {bool(told.voided)}")
    else:
        succeeded = bool(told.succeeded)
        look.that((DONE in did) == succeeded, f"{where} did {sorted(did)}, success told {succeeded}")
    if step.name == saga.choreography.irrevocable:
        # called off after it was decided it has both events; called off before that, the failure is all there is
        has_failed = bool(told.failed)
        look.that(not did & {REFUSED, UNDONE} or has_failed, f"{where} did {sorted(did)}, and no failure is told")
        look.that(not (ACTED in did and has_failed), f"{where} was carried out, and said to have failed")
        return
    if step.name in NOTED_REFUSALS:
        look.that((REFUSED in did) == bool(told.failed), f"{where} did {sorted(did)}, failure told {bool(told.failed)}")
    look.that(not (DONE in did and told.failed), f"{where} was done, and said to have failed")
    look.that((UNDONE in did) == bool(told.undone), f"{where} did {sorted(did)}, undoing told {bool(told.undone)}")
    look.that(not (told.voided and did), f"{where} did {sorted(did)}, and is said to be void")


# Every saga ends, and ends well


def every_saga_ends(state: EndState, look: Look) -> None:
    """Each saga is terminal, within its deadline plus the bound once the faults had ended."""
    run = state.run
    look.that(not run.unsettled, f"not quiet in time: {run.unsettled}")
    for saga in state.sagas:
        record = state.records.sagas.get((saga.choreography.name, saga.key))
        if record is None:
            continue  # told by another invariant
        if not look.that(record.status in ENDS, f"{saga.name} is {record.status}"):
            continue
        deadline = saga.start.time + timedelta(seconds=run.deadlines[saga.choreography.name])
        latest = max(deadline, run.healed) + timedelta(seconds=run.bound_seconds)
        look.that(
            record.end is not None and record.end <= latest, f"{saga.name} ended at {record.end}, later than {latest}"
        )


def ends_are_those_of_the_orders(state: EndState, look: Look) -> None:
    """A saga completes or is compensated as its order demands, and for no other reason than that or its time-out."""
    for saga in state.sagas:
        record = state.records.sagas.get((saga.choreography.name, saga.key))
        if record is None or record.status not in ENDS:
            continue
        wanted = fate(saga.order)
        failures = {event.type for event in saga.of_type(*saga.choreography.failures)}
        if saga.timed_out:
            look.that(record.status in {COMPENSATED, FAILED}, f"{saga.name} was timed out, and is {record.status}")
            # what can't be undone answers a time-out with its failure
            allowed = {wanted.failure, _failure_of_irrevocable(saga)}
            look.that(failures <= allowed, f"{saga.name} was timed out, and failed by {sorted(failures - allowed)}")
            continue
        look.that(record.status == wanted.end, f"{saga.name} is {record.status}, not {wanted.end or 'timed out'}")
        expected = {wanted.failure} - {""}
        look.that(failures == expected, f"{saga.name} failed by {sorted(failures)}, not {sorted(expected)}")
        committed = bool(saga.of_type(saga.choreography.commit))
        look.that(committed == (wanted.end == COMPLETED), f"{saga.name} is {record.status}, committed: {committed}")


def _failure_of_irrevocable(saga: Saga) -> str:
    return next((s.failure for s in saga.choreography.steps if s.name == saga.choreography.irrevocable), "")


def compensation_is_exact(state: EndState, look: Look) -> None:
    """Of a saga that did not complete every step that was done is undone, and nothing else; of one that did, none."""
    for saga in state.sagas:
        record = state.records.sagas.get((saga.choreography.name, saga.key))
        if record is None or record.status not in ENDS:
            continue
        for step in saga.choreography.steps:
            where = f"{saga.name} is {record.status}; {step.name}"
            effects = state.effects.get((step.name, saga.key), ())
            did = Counter(effect.direction for effect in effects)
            if record.status == COMPLETED:
                look.that(did[DONE] > 0, f"{where} was not done")
                look.that(did[UNDONE] == 0, f"{where} was undone")
                if step.name == saga.choreography.irrevocable:
                    look.that(did[ACTED] > 0, f"{where} was not carried out")
                continue
            look.that(did[ACTED] == 0, f"{where} was carried out")
            done, undone = _parts(effects, DONE), _parts(effects, UNDONE)
            look.that(done == undone, f"{where} was done {done.total()} times, undone {undone.total()}")
            if record.status == FAILED:
                look.that(did[DONE] == 0, f"{where} was done, so there was something to undo")


def _parts(effects: Sequence[Effect], direction: str) -> Counter[str]:
    return Counter(effect.part for effect in effects if effect.direction == direction)


# The books


def books_add_up(state: EndState, look: Look) -> None:
    """Stock, money and drones: what is taken is what the completed sagas hold, and the rest is still there."""
    completed = [
        saga
        for saga in state.sagas
        if (record := state.records.sagas.get((saga.choreography.name, saga.key))) and record.status == COMPLETED
    ]
    orders = [(saga, saga.order) for saga in completed if isinstance(saga.order, OrderCreated)]
    parcels = [saga for saga in completed if saga.choreography.name == PARCELS]
    _stock_adds_up(state, [order for _, order in orders], look)
    _money_adds_up(state, orders, look)
    _parcels_add_up(state, parcels, look)


def _stock_adds_up(state: EndState, orders: Sequence[OrderCreated], look: Look) -> None:
    sold: Counter[str] = Counter()
    for order in orders:
        sold.update(wanted_pieces(order))
    inventory = state.books["inventory"].tables
    levels = {row["sku"]: row for row in inventory["stock"]}
    lines: Counter[str] = Counter()
    for row in inventory["reserved_lines"]:
        lines[row["sku"]] += row["quantity"]
    for sku, opening in OPENING_STOCK.items():
        level = levels[sku]
        total = level["available"] + level["reserved"]
        look.that(total == opening, f"there are {total} of {sku}, not {opening}")
        look.that(
            level["reserved"] == sold[sku] == lines[sku],
            f"{level['reserved']} of {sku} are reserved, {lines[sku]} in lines, {sold[sku]} by completed orders",
        )


def _money_adds_up(state: EndState, orders: Sequence[tuple[Saga, OrderCreated]], look: Look) -> None:
    payments = {row["order_id"]: row for row in state.books["payments"].tables["payments"]}
    shipments = {row["order_id"]: row for row in state.books["shipping"].tables["shipments"]}
    placed = {row["order_id"]: row for row in state.books["orders"].tables["orders"]}
    taken = sum(row["amount_cents"] for row in payments.values() if row["status"] == "PROCESSED")
    due = sum(amount_cents(order) for _, order in orders)
    look.that(taken == due, f"payments have taken {taken} cents; completed orders cost {due}")
    for saga, order in orders:
        payment, shipment, row = payments.get(saga.key), shipments.get(saga.key), placed.get(saga.key)
        look.that(
            payment is not None and (payment["status"], payment["amount_cents"]) == ("PROCESSED", amount_cents(order)),
            f"{saga.name} cost {amount_cents(order)}, paid: {payment and dict(payment)}",
        )
        look.that(
            shipment is not None
            and row is not None
            and (row["status"], row["tracking_number"]) == ("COMPLETED", shipment["tracking_number"])
            and shipment["status"] == "SHIPPED",
            f"{saga.name} is completed; order {row and dict(row)}, shipment {shipment and dict(shipment)}",
        )
    of_completed = {saga.key for saga, _ in orders}
    for key, row in placed.items():
        wanted = "COMPLETED" if key in of_completed else "CANCELLED"
        look.that(row["status"] == wanted, f"{ORDERS} {key}: the order is {row['status']}, not {wanted}")
    for key, shipment in shipments.items():
        look.that(
            (shipment["status"] == "SHIPPED") == (key in of_completed), f"{ORDERS} {key}: shipment {dict(shipment)}"
        )


def _parcels_add_up(state: EndState, parcels: Sequence[Saga], look: Look) -> None:
    of_completed = {saga.key for saga in parcels}
    packaging = state.books["packaging"].tables
    levels = {row["item"]: row for row in packaging["stock"]}
    packed = Counter(row["item"] for row in packaging["packages"])
    wanted = Counter(getattr(saga.order, "item", "") for saga in parcels)
    for item, opening in OPENING_ITEMS.items():
        level = levels[item]
        total = level["available"] + level["packed"]
        look.that(total == opening, f"there are {total} of {item}, not {opening}")
        look.that(
            level["packed"] == packed[item] == wanted[item],
            f"{level['packed']} of {item} are packed, {packed[item]} packages, {wanted[item]} completed parcels",
        )
    [fleet] = state.books["drones"].tables["fleet"]
    standing = {row["parcel_id"] for row in state.books["drones"].tables["drones"] if row["status"] == "PROVISIONED"}
    total = fleet["available"] + fleet["provisioned"]
    look.that(total == FLEET, f"there are {total} drones, not {FLEET}")
    look.that(
        fleet["provisioned"] == len(standing) and standing == of_completed,
        f"{fleet['provisioned']} drones are out, {len(standing)} for parcels, and {len(of_completed)} are completed",
    )
    for row in state.books["delivery"].tables["deliveries"]:
        look.that(
            (row["status"] == "DELIVERED") == (row["parcel_id"] in of_completed),
            f"{PARCELS} {row['parcel_id']}: delivery {dict(row)}",
        )
    for row in state.books["parcels"].tables["parcels"]:
        status = "COMPLETED" if row["parcel_id"] in of_completed else "CANCELLED"
        look.that(row["status"] == status, f"{PARCELS} {row['parcel_id']}: the parcel is {row['status']}, not {status}")


# Time


def time_outs_are_fair(state: EndState, look: Look) -> None:
    """One time-out for each late saga: not before its deadline, none after its commit event."""
    for saga in state.sagas:
        choreography = saga.choreography
        deadline = saga.start.time + timedelta(seconds=state.run.deadlines[choreography.name])
        look.that(
            len(saga.timed_out) <= 1,
            f"{saga.name} was timed out {len(saga.timed_out)} times, at {[event.sequence for event in saga.timed_out]}",
        )
        committed = min((event.sequence for event in saga.of_type(choreography.commit)), default=None)
        for event in saga.timed_out:
            look.that(event.source == CORRELATOR, f"{saga.name} was timed out by {event.source}")
            look.that(event.time >= deadline, f"{saga.name} was timed out at {event.time}, before {deadline}")
            look.that(
                committed is None or event.sequence < committed,
                f"{saga.name} was timed out at {event.sequence}, after its commit event at {committed}",
            )
        decided = committed is not None or bool(saga.of_type(*choreography.failures))
        look.that(decided or bool(saga.timed_out), f"{saga.name} neither committed nor failed, and was not timed out")


# The records


def records_are_a_fold(state: EndState, look: Look) -> None:
    """A correlator that reads the stream into an empty store gets the same records, and publishes nothing."""
    for name, rows in state.records.tables.items():
        again = state.rebuilt.tables[name]
        for identity in rows.keys() | again.keys():
            mine, other = rows.get(identity), again.get(identity)
            if mine == other:
                look.looked_at += 1
                continue
            columns = {
                column: ((mine or {}).get(column), (other or {}).get(column))
                for column in (mine or other or {})
                if (mine or {}).get(column) != (other or {}).get(column)
            }
            look.that(False, f"{name} {identity}: (recorded, rebuilt) differ: {columns}")
    told = [event_type for event_type in state.run.published_by_rebuild if event_type not in OF_PARTITIONS]
    look.that(not told, f"the rebuild published {dict(Counter(told))}")
    look.that(state.rebuilt.outbox_depth == 0, f"the rebuild's outbox has {state.rebuilt.outbox_depth} rows")


# The run itself


def the_run_proves_itself(state: EndState, look: Look) -> None:
    """Enough sagas of both kinds began and ended, enough processes were killed, every kind of fault was seen."""
    run = state.run
    look.that(
        len(state.sagas) >= run.wanted_sagas, f"only {len(state.sagas)} sagas were begun, of {run.wanted_sagas} wanted"
    )
    for name in CHOREOGRAPHIES:
        count = sum(saga.choreography.name == name for saga in state.sagas)
        look.that(count > 0, f"no saga of {name} was begun")
    ended = sum(record.status in ENDS for record in state.records.sagas.values())
    look.that(ended >= 0.95 * len(state.sagas), f"only {ended} of {len(state.sagas)} sagas have ended")
    look.that(any(saga.timed_out for saga in state.sagas), "no saga was late")
    look.that(any(len(saga.of_type(saga.start.type)) > 1 for saga in state.sagas), "no saga was begun twice")
    look.that(any(e.type == DEAD_LETTER_REDRIVEN for e in state.events), "no dead letter was redriven")
    look.that(bool(state.unreadable), "nothing unreadable was published")
    kills = sum(run.kills.values())
    look.that(kills >= run.wanted_kills, f"only {kills} SIGKILLs were seen, of {run.wanted_kills} wanted")
    for process, count in run.kills.items():
        look.that(count > 0, f"{process} was never killed")
    leaders = sum(strike.observed for strike in run.strikes if strike.kind == LEADER_KILL)
    look.that(
        leaders >= run.wanted_leader_kills,
        f"only {leaders} times a leader was killed and succeeded, of {run.wanted_leader_kills} wanted",
    )
    for strike in run.strikes:
        if strike.problem:
            look.that(not run.must_be_complete, f"{strike.kind} could not be brought about: {strike.problem}")
        else:
            times = strike.brought_about
            look.that(strike.observed > 0, f"{strike.kind} was brought about {times} times, and never seen to strike")


INVARIANTS: tuple[Invariant, ...] = (
    Invariant("stored", "the stream has all that was acknowledged", acknowledged_is_stored),
    Invariant("processed", "each event was dealt with by all whom it concerns; nothing waits", everything_is_processed),
    Invariant("dead letters", "of what no one can read one, and none that is open besides", dead_letters_are_closed),
    Invariant("published", "every outbox is empty", outboxes_are_empty),
    Invariant("effects once", "at most one effect a saga, step and direction", effects_happen_once),
    Invariant("events once", "at most one success or failure, undoing and voiding a step", events_happen_once),
    Invariant("said and done", "what the services did is what they said", effects_agree_with_events),
    Invariant("all end", "every saga ended within its deadline plus the bound", every_saga_ends),
    Invariant("ends", "each saga ended as its order demands, or by its time-out", ends_are_those_of_the_orders),
    Invariant("undone", "every completed step of a compensated saga is undone, and only those", compensation_is_exact),
    Invariant("books", "money, stock and drones add up", books_add_up),
    Invariant("time-outs", "one for each late saga, none after its commit event", time_outs_are_fair),
    Invariant("records", "they equal a fold of the stream into an empty store", records_are_a_fold),
    Invariant("the run", "enough was begun, killed and ended; every fault struck", the_run_proves_itself),
)

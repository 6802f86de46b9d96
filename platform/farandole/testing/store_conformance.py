"""What every `CorrelatorStore` must do. Subclass the suite and give it your store:

class TestMyStore(CorrelatorStoreConformance):
    @pytest.fixture
    async def store(self):
        store = MyStore()
        await store.open()
        yield store
        await store.close()
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from farandole.correlator.contents import Item, PartitionPosition
from farandole.correlator.dead_letters import ClosedDeadLetter, DeadLetter, DeadLetterState
from farandole.correlator.filters import DEAD_LETTER_FIELDS, SAGA_FIELDS, filter_text, parse_filter
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.queries import (
    DeadLetterField,
    DeadLetterGroup,
    DeadLetterGroupQuery,
    DeadLetterQuery,
    RecordedSaga,
    SagaCount,
    SagaOrder,
    SagaQuery,
    StoredDefinition,
)
from farandole.correlator.store import (
    ALL_PARTITIONS,
    Claim,
    Committed,
    CorrelatorStore,
    FoldedBatch,
    NewDeadLetter,
    SagaChange,
)
from farandole.deadlines import overdue_id
from farandole.definition import Definition, StepDefinition, StepKind
from farandole.envelope import Publication
from farandole.errors import DefinitionError, FencedError, SnapshotError, StoreError, StreamIncarnationError
from farandole.leases import Replica
from farandole.lifecycle import CORRELATOR
from farandole.partitions import PARTITIONS, partition_of
from farandole.reasons import Reason
from farandole.saga import (
    Cause,
    Disposition,
    Fact,
    Health,
    HistoryEntry,
    Lifecycle,
    Saga,
    Status,
    StepRecord,
    StepStatus,
)

INCARNATION = "2026-03-01T08:00:00Z"
START = datetime(2026, 3, 1, 9, 0, 0, 123456, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after the suite's beginning of time."""
    return START + timedelta(seconds=seconds)


def entry(
    sequence: int, *, type_: str = "orders.v1.OrderCreated", disposition: Disposition = Disposition.APPLIED
) -> HistoryEntry:
    """A history entry of the event at `sequence`."""
    fact = Fact(
        sequence=sequence,
        stream_time=at(sequence),
        type=type_,
        source="urn:källa/1",
        id=f"event-{sequence}",
        digest=bytes([sequence % 256, 0, 255]),
        time=at(sequence - 0.5),
        causation_id=f"event-{sequence - 1}",
        reason="out of stock",
    )
    return HistoryEntry(fact, disposition, "" if disposition is Disposition.APPLIED else "it came too soon")


def saga(
    key: str,
    *,
    definition: str = "order-fulfilment",
    version: int = 1,
    status: Status = Status.RUNNING,
    health: Health = Health.ON_TIME,
    started: float | None = 0.0,
    updated: float = 0.0,
    ended: float | None = None,
    deadline: float | None = 1800.0,
    history: Iterable[HistoryEntry] = (),
) -> Saga:
    """A record; times in seconds after `START`. Its revision is the length of its history."""
    entries = tuple(history)
    return Saga(
        definition=definition,
        version=version,
        key=key,
        revision=len(entries),
        status=status,
        cause=Cause.STEP_FAILURE if status is Status.COMPENSATING else Cause.UNSPECIFIED,
        cause_detail="take-payment: declined" if status is Status.COMPENSATING else "",
        health=health,
        start_time=None if started is None else at(started),
        update_time=at(updated),
        end_time=None if ended is None else at(ended),
        deadline=None if deadline is None else at(deadline),
        finished_late=False,
        steps=(
            StepRecord("create-order", StepStatus.SUCCEEDED, None, at(0), at(0)),
            StepRecord("take-payment", StepStatus.RUNNING, at(60), at(1), None),
            StepRecord("ship"),
        ),
        history=entries,
    )


def dead_letter(
    sequence: int, *, key: str = "", reason: Reason = Reason.UNDECODABLE, participant: str = "correlator"
) -> NewDeadLetter:
    """A dead letter of the event at `sequence` that no one can read, and its publications."""
    letter = DeadLetter(
        participant=participant,
        sequence=sequence,
        subject="events.3.orders.v1.OrderCreated",
        event_type="orders.v1.OrderCreated",
        key=key,
        reason=reason,
        detail="the body is not JSON: ü",
        stream_time=at(sequence),
        headers={"ce-id": "1", "ce-source": "käse"},
        body_size=3,
        body_sha256="ab" * 32,
        state_sequence=sequence,
        payload=b"\x00\xff" if key else None,
        body_prefix=b"" if key else b"\x00\x01\xff",
    )
    return NewDeadLetter(letter, (publication(f"{participant}-{sequence}"), publication(f"unreadable-{sequence}")))


def given_up(sequence: int, *, at_sequence: int, attempts: int = 3, participant: str = "payments") -> NewDeadLetter:
    """That the event at `at_sequence` says that a participant gave up on the event of the saga `a` at `sequence`."""
    letter = DeadLetter(
        participant=participant,
        sequence=sequence,
        subject="events.12.orders.v1.OrderCreated",
        event_type="orders.v1.OrderCreated",
        key="a",
        reason=Reason.RETRIES_EXHAUSTED,
        detail=f"tried {attempts} times",
        stream_time=at(sequence),
        headers={"ce-id": f"event-{sequence}", "ce-source": "orders", "ce-type": "orders.v1.OrderCreated"},
        body_size=0,
        body_sha256="",
        state_sequence=at_sequence,
        definition="order-fulfilment",
        step="take-payment",
        compensation=True,
        attempts=attempts,
    )
    return NewDeadLetter(letter)


def closed(
    sequence: int,
    *,
    at_sequence: int,
    state: DeadLetterState = DeadLetterState.REDRIVEN,
    participant: str = "payments",
    step: str = "take-payment",
    actor: str = "",
    reason: str = "",
) -> ClosedDeadLetter:
    """That the event at `at_sequence` closes a dead letter; of `correlator` one that no step has."""
    definition, step = ("", "") if participant == "correlator" else ("order-fulfilment", step)
    return ClosedDeadLetter(participant, sequence, definition, step, state, at(at_sequence), at_sequence, actor, reason)


def key_of(partition: int, number: int = 0) -> str:
    """A key of a partition; another number, another key."""
    keys = (key for key in (f"k{number}-{n}" for n in itertools.count()) if partition_of(key) == partition)
    return next(keys)


def publication(key: str) -> Publication:
    """Something to publish."""
    return Publication(key, f"events.{key}.choreography.v1.SagaCompleted", {"Nats-Msg-Id": f"m/{key}"}, b"\x00\x80")


def definition(name: str = "order-fulfilment", version: int = 1, *, description: str = "Orders.") -> Definition:
    """A definition of one step."""
    step = StepDefinition("ship", "shipping", StepKind.PIVOT, ("orders.v1.OrderCreated",), (), "a.v1.Shipped", ())
    deadline = timedelta(minutes=30)
    return Definition(name, version, description, deadline, "orders.v1.OrderCreated", "a.v1.Shipped", (step,))


def new(*sagas: Saga) -> tuple[SagaChange, ...]:
    """Changes that record sagas for the first time."""
    return tuple(SagaChange(None, one) for one in sagas)


async def record(store: CorrelatorStore, *sagas: Saga) -> Claim:
    """Claims the store and records new sagas."""
    claim = await store.claim(INCARNATION)
    committed = await store.commit(claim, FoldedBatch(claim.position + 1, new(*sagas)))
    return committed.claim


async def walk(store: CorrelatorStore, query: SagaQuery) -> list[str]:
    """The keys of every page of a list."""
    keys: list[str] = []
    while True:
        page = await store.list_sagas(query)
        assert len(page.sagas) <= query.limit
        keys.extend(found.key for found in page.sagas)
        if page.next is None:
            return keys
        query = replace(query, after=page.next)


async def groups_of(store: CorrelatorStore, query: DeadLetterGroupQuery) -> AsyncIterator[DeadLetterGroup]:
    """The groups of every page."""
    while True:
        page = await store.group_dead_letters(query)
        assert len(page.groups) <= query.limit
        for group in page.groups:
            yield group
        if page.next is None:
            return
        query = replace(query, after=page.next)


async def everything(store: CorrelatorStore, keys: Iterable[str]) -> tuple[object, ...]:
    """All that a commit may change and a reader may see."""
    return (
        await store.load(list(keys)),
        await store.waiting_publications(),
        await store.list_dead_letters(DeadLetterQuery(limit=1000)),
        [await store.get_sagas(key) for key in keys],
    )


async def exported(store: CorrelatorStore) -> list[Item]:
    """All that a store holds."""
    items: list[Item] = []
    await store.export(items.append)
    return items


async def filled(store: CorrelatorStore) -> Claim:
    """Puts something of everything into a store: records in no order, and two partitions at different positions."""
    await store.activate([definition()], replica="a")
    claim = await store.claim(INCARNATION)
    batch = FoldedBatch(
        9,
        new(
            saga("b", history=[entry(3), entry(9, disposition=Disposition.EARLY)], updated=9),
            saga("a", definition="zeta", started=None, deadline=None, history=[entry(4)]),
            saga("a", history=[entry(4)], status=Status.COMPENSATING),
            saga("B", ended=5, status=Status.COMPLETED, history=[entry(2)]),
        ),
        {3: b"\x00\xff", 4: b""},
        publications=[publication("b"), publication("a")],
        dead_letters=[dead_letter(8), dead_letter(7, key="a")],
        closed_dead_letters=[closed(7, at_sequence=9, participant="correlator", actor="ada", reason="ü")],
        time=at(9),
    )
    await store.commit(claim, batch)
    part = await store.claim(INCARNATION, {2, 5})
    return (await store.commit(part, FoldedBatch(12, time=at(12)))).claim


@pytest.mark.asyncio
class CorrelatorStoreConformance:
    """The suite. Each test has a store of its own, open and empty."""

    @pytest.fixture
    def store(self) -> CorrelatorStore:
        """The store to test: override it."""
        raise NotImplementedError("override the fixture `store` with an open, empty store")

    async def test_replicas_share_out_their_lanes_in_the_store(self, store: CorrelatorStore) -> None:
        """What else leases must do is `LeasesConformance`."""
        first, second = Replica("a", "1"), Replica("b", "2")
        assert (await store.leases.join(first, 4, is_able=True)).lanes == {0, 1, 2, 3}
        assert (await store.leases.join(second, 4, is_able=True)).replicas == ("a", "b")
        await store.leases.leave(first)
        assert (await store.leases.renew(second, 4, is_able=True)).lanes == {0, 1, 2, 3}

    async def test_opening_an_open_store_keeps_what_it_has(self, store: CorrelatorStore) -> None:
        await record(store, saga("a"))
        await store.open()
        assert (await store.load(["a"]))["a"] == (saga("a"),)

    async def test_opened_to_be_read_too(self, store: CorrelatorStore) -> None:
        await record(store, saga("a"))
        await store.open(to_read=True)
        assert (await store.load(["a"]))["a"] == (saga("a"),)

    async def test_a_store_that_can_be_written_passes_its_check(self, store: CorrelatorStore) -> None:
        await store.check()

    # claims and fencing

    async def test_the_first_claim_begins_before_the_first_event(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        assert (claim.position, claim.incarnation, claim.partitions) == (0, INCARNATION, ALL_PARTITIONS)

    async def test_a_new_claim_goes_on_where_the_last_commit_ended(self, store: CorrelatorStore) -> None:
        first = await store.claim(INCARNATION)
        committed = await store.commit(first, FoldedBatch(7))
        assert committed.claim == replace(first, position=7)
        second = await store.claim(INCARNATION)
        assert second.position == 7
        assert second.epoch > first.epoch

    async def test_the_time_of_the_last_event_stays_with_the_position(self, store: CorrelatorStore) -> None:
        """It tells another event at the same place, as an older copy of the stream has once it has grown."""
        assert (await store.claim(INCARNATION)).time is None
        claim = (await store.commit(await store.claim(INCARNATION), FoldedBatch(7, time=at(3)))).claim
        assert claim.time == at(3)
        assert (await store.commit(claim, FoldedBatch(7))).claim.time == at(3)
        assert (await store.claim(INCARNATION)).time == at(3)

    async def test_who_was_shut_out_does_not_claim_again(self, store: CorrelatorStore) -> None:
        first = await store.claim(INCARNATION)
        again = await store.claim(INCARNATION, held=first)
        assert again.epoch > first.epoch
        other = await store.claim(INCARNATION)
        with pytest.raises(FencedError):
            await store.claim(INCARNATION, held=again)
        assert (await store.commit(other, FoldedBatch(5))).claim.position == 5

    async def test_another_incarnation_is_refused_and_changes_nothing(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        other = "2026-04-01T00:00:00Z"
        with pytest.raises(StreamIncarnationError, match=f"{INCARNATION}(.|\n)*{other}"):
            await store.claim(other)
        assert (await store.commit(claim, FoldedBatch(3))).claim.position == 3
        assert (await store.claim(INCARNATION)).position == 3

    async def test_parts_are_claimed_and_moved_on_apart(self, store: CorrelatorStore) -> None:
        low, high = frozenset(range(8)), frozenset(range(8, 16))
        first = await store.claim(INCARNATION, low)
        second = await store.claim(INCARNATION, high)
        first = (await store.commit(first, FoldedBatch(20))).claim
        second = (await store.commit(second, FoldedBatch(12))).claim
        whole = await store.claim(INCARNATION)
        assert whole.position == 12
        assert whole.epoch > max(first.epoch, second.epoch)
        for fenced in (first, second):
            with pytest.raises(FencedError):
                await store.commit(fenced, FoldedBatch(30))
        assert (await store.commit(whole, FoldedBatch(30))).claim.position == 30
        assert (await store.claim(INCARNATION, low)).position == 30

    async def test_partitions_that_come_together_keep_what_each_has_taken_in(self, store: CorrelatorStore) -> None:
        """As where the number of lanes has changed: what is folded twice is folded at the wrong time."""
        low, high = frozenset(range(8)), frozenset(range(8, 16))
        await store.commit(await store.claim(INCARNATION, low), FoldedBatch(20, time=at(20)))
        await store.commit(await store.claim(INCARNATION, high), FoldedBatch(12, time=at(12)))

        async def places() -> set[tuple[bool, int, datetime | None]]:
            found = [item for item in await exported(store) if isinstance(item, PartitionPosition)]
            return {(one.partition in low, one.position, one.time) for one in found}

        whole = await store.claim(INCARNATION)
        assert (whole.position, whole.time, whole.taken_in) == (12, at(12), dict.fromkeys(low, 20))
        assert await places() == {(True, 20, at(20)), (False, 12, at(12))}, "a claim moves nothing"
        whole = (await store.commit(whole, FoldedBatch(15, time=at(15)))).claim
        assert (whole.position, whole.time, whole.taken_in) == (15, at(15), dict.fromkeys(low, 20))
        assert await places() == {(True, 20, at(20)), (False, 15, at(15))}
        again = await store.claim(INCARNATION, held=whole)
        assert (again.position, again.time, again.taken_in) == (15, at(15), dict.fromkeys(low, 20))
        assert (await store.commit(again, FoldedBatch(15, publications=(publication("a"),)))).claim == again
        level = (await store.commit(again, FoldedBatch(30, time=at(30)))).claim
        assert (level.position, level.taken_in) == (30, {})
        assert await places() == {(True, 30, at(30)), (False, 30, at(30))}

    @pytest.mark.parametrize("partition", [1, 9])
    async def test_who_lost_one_partition_commits_nothing_of_any(self, store: CorrelatorStore, partition: int) -> None:
        """Whether it is one of those that are further or not."""
        await store.commit(await store.claim(INCARNATION, {0, 1}), FoldedBatch(20))
        whole = await store.claim(INCARNATION, {0, 1, 8, 9})
        await store.claim(INCARNATION, {partition})
        before = await store.positions()
        with pytest.raises(FencedError):
            await store.commit(whole, FoldedBatch(30, new(saga("a"))))
        assert await store.positions() == before
        assert await store.load("a") == {"a": ()}

    async def test_a_claim_of_partitions_of_which_one_is_new_begins_at_zero(self, store: CorrelatorStore) -> None:
        first = await store.claim(INCARNATION, {1})
        await store.commit(first, FoldedBatch(9))
        claim = await store.claim(INCARNATION, {1, 2})
        assert (claim.position, claim.taken_in) == (0, {1: 9})
        assert await store.positions() == {1: 9, 2: 0}

    async def test_who_lost_the_claim_commits_nothing(self, store: CorrelatorStore) -> None:
        older = await record(store, saga("a"))
        newer = await store.claim(INCARNATION)
        before = await everything(store, "ab")
        changed = replace(saga("a", history=[entry(2)]), status=Status.COMPLETED)
        batch = FoldedBatch(
            position=5,
            changes=(SagaChange(saga("a"), changed), *new(saga("b"))),
            payloads={2: b"x"},
            publications=(publication("a"),),
            dead_letters=(dead_letter(3),),
        )
        with pytest.raises(FencedError):
            await store.commit(older, batch)
        assert await everything(store, "ab") == before
        assert newer.position == 1
        assert (await store.commit(newer, batch)).claim.position == 5

    async def test_one_claim_commits_once(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        await store.commit(claim, FoldedBatch(4, new(saga("a"))))
        with pytest.raises(FencedError):
            await store.commit(claim, FoldedBatch(4, new(saga("b"))))
        assert await store.load(["b"]) == {"b": ()}

    async def test_of_commits_at_the_same_time_one_wins(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        keys = [f"k{number}" for number in range(8)]
        results = await asyncio.gather(
            *(store.commit(claim, FoldedBatch(4, new(saga(key)), publications=(publication(key),))) for key in keys),
            return_exceptions=True,
        )
        winners = [key for key, result in zip(keys, results, strict=True) if isinstance(result, Committed)]
        assert len(winners) == 1
        assert all(isinstance(result, Committed | FencedError) for result in results)
        assert [key for key, sagas in (await store.load(keys)).items() if sagas] == winners
        assert [row.publication.key for row in await store.waiting_publications()] == winners

    async def test_a_commit_does_not_go_back(self, store: CorrelatorStore) -> None:
        claim = (await store.commit(await store.claim(INCARNATION), FoldedBatch(4))).claim
        with pytest.raises(ValueError, match="before"):
            await store.commit(claim, FoldedBatch(3))
        assert (await store.commit(claim, FoldedBatch(4))).claim == claim

    # atomicity

    async def test_a_batch_that_fails_leaves_nothing(self, store: CorrelatorStore) -> None:
        stored = saga("a", history=[entry(1)])
        claim = await record(store, stored)
        row = (await store.commit(claim, FoldedBatch(2, publications=(publication("first"),)))).publications[0]
        claim = await store.claim(INCARNATION)
        before = await everything(store, "abc")
        stale = saga("a", history=[entry(1), entry(2), entry(3)])
        batch = FoldedBatch(
            position=6,
            changes=(*new(saga("b", history=[entry(4)])), SagaChange(stale, saga("a", history=[entry(6)]))),
            payloads={4: b"x", 6: b"y"},
            publications=(publication("b"),),
            dead_letters=(dead_letter(5),),
            acknowledged=(row.id,),
        )
        with pytest.raises(StoreError):
            await store.commit(claim, batch)
        assert await everything(store, "abc") == before
        assert (await store.commit(claim, FoldedBatch(6))).claim.position == 6

    async def test_a_record_is_made_once(self, store: CorrelatorStore) -> None:
        claim = await record(store, saga("a"))
        with pytest.raises(StoreError):
            await store.commit(claim, FoldedBatch(2, new(saga("b"), saga("a", updated=9))))
        assert await store.load("ab") == {"a": (saga("a"),), "b": ()}

    async def test_a_record_that_is_not_there_is_not_changed(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        with pytest.raises(StoreError):
            await store.commit(claim, FoldedBatch(2, (SagaChange(saga("a"), saga("a", updated=9)),)))
        assert await store.load("a") == {"a": ()}

    # records and histories

    async def test_a_record_comes_back_as_it_was(self, store: CorrelatorStore) -> None:
        lifecycle = Lifecycle("order-fulfilment", 3, Cause.DEADLINE, ("take-payment", "ship"), compensation=True)
        told = entry(4, type_="choreography.v1.SagaTimedOut")
        whole = replace(
            saga(
                "a",
                version=3,
                status=Status.COMPENSATING,
                health=Health.OVERDUE,
                updated=4.000001,
                ended=5,
                history=[
                    entry(2, disposition=Disposition.EARLY),
                    replace(told, fact=replace(told.fact, lifecycle=lifecycle)),
                ],
            ),
            finished_late=True,
            history_omitted=12,
            revision=14,
        )
        unstarted = saga("b", started=None, deadline=None, history=[entry(3, disposition=Disposition.UNMATCHED)])
        await record(store, whole, unstarted)
        assert await store.load(["a", "b", "c"]) == {"a": (whole,), "b": (unstarted,), "c": ()}

    async def test_what_an_event_says_of_a_dead_letter_comes_back(self, store: CorrelatorStore) -> None:
        told = entry(4, type_="choreography.v1.DeadLetterRecorded")
        lifecycle = Lifecycle("order-fulfilment", 0, Cause.UNSPECIFIED, ("ship",), False, ("drone-fleet", 2**40))
        whole = saga("a", history=[replace(told, fact=replace(told.fact, lifecycle=lifecycle))])
        await record(store, whole)
        assert await store.load(["a"]) == {"a": (whole,)}

    async def test_a_record_that_has_not_started_may_get_another_version(self, store: CorrelatorStore) -> None:
        before = saga("a", started=None, deadline=None, history=[entry(3, disposition=Disposition.UNMATCHED)])
        claim = await record(store, before)
        after = saga("a", version=2, history=[entry(3), entry(5)])
        claim = (await store.commit(claim, FoldedBatch(5, (SagaChange(before, after),)))).claim
        assert await store.load(["a"]) == {"a": (after,)}
        again = replace(after, revision=3, status=Status.COMPLETED)
        await store.commit(claim, FoldedBatch(6, (SagaChange(after, again),)))
        assert await store.load(["a"]) == {"a": (again,)}

    async def test_sagas_under_one_key_come_by_definition(self, store: CorrelatorStore) -> None:
        first = saga("a", definition="drone-delivery", history=[entry(1)])
        second = saga("a", definition="order-fulfilment", history=[entry(1), entry(2)])
        await record(store, second, first)
        assert await store.load(["a"]) == {"a": (first, second)}
        assert [found.saga for found in await store.get_sagas("a")] == [first, second]
        assert [found.saga for found in await store.get_sagas("a", "order-fulfilment")] == [second]
        assert await store.get_sagas("a", "none-such") == ()

    async def test_thousands_of_keys_load_at_once(self, store: CorrelatorStore) -> None:
        sagas = {f"k{number}": saga(f"k{number}", history=[entry(number)]) for number in range(1, 2501)}
        await record(store, *sagas.values())
        assert await store.load([*sagas, "none"]) == {"none": ()} | {key: (one,) for key, one in sagas.items()}
        assert await store.load([]) == {}

    async def test_a_changed_entry_replaces_the_old_one_and_keeps_its_payload(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        before = saga("a", history=[entry(5, disposition=Disposition.EARLY)])
        claim = (await store.commit(claim, FoldedBatch(5, new(before), {5: b"five"}))).claim
        after = saga("a", history=[entry(5), entry(6)])
        await store.commit(claim, FoldedBatch(6, (SagaChange(before, after),), {6: b"six"}))
        (found,) = await store.get_sagas("a")
        assert found.saga == after
        assert found.payloads == {5: b"five", 6: b"six"}

    async def test_an_entry_that_is_gone_goes(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        before = saga("a", history=[entry(5), entry(6)])
        claim = (await store.commit(claim, FoldedBatch(6, new(before), {5: b"five", 6: b"six"}))).claim
        after = replace(saga("a", history=[entry(6)]), revision=3, history_omitted=2)
        await store.commit(claim, FoldedBatch(7, (SagaChange(before, after),)))
        (found,) = await store.get_sagas("a")
        assert found.saga == after
        assert found.payloads == {6: b"six"}

    async def test_an_event_that_was_folded_late_stands_at_its_place(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        before = saga("a", history=[entry(5), entry(9)])
        claim = (await store.commit(claim, FoldedBatch(9, new(before)))).claim
        after = saga("a", history=[entry(5), entry(7), entry(9)])
        await store.commit(claim, FoldedBatch(10, (SagaChange(before, after),)))
        assert (await store.load("a"))["a"] == (after,)

    async def test_no_payload_and_an_empty_one_are_told_apart(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        whole = saga("a", history=[entry(1), entry(2)])
        await store.commit(claim, FoldedBatch(2, new(whole), {1: b""}))
        (found,) = await store.get_sagas("a")
        assert found.payloads == {1: b""}

    async def test_one_event_in_two_sagas_has_its_payload_in_both(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        both = (saga("a", history=[entry(1)]), saga("a", definition="drone-delivery", history=[entry(1)]))
        await store.commit(claim, FoldedBatch(1, new(*both), {1: b"one"}))
        assert [found.payloads for found in await store.get_sagas("a")] == [{1: b"one"}, {1: b"one"}]

    # the outbox

    async def test_publications_wait_in_order_until_they_are_acknowledged(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        batch = FoldedBatch(1, publications=(publication("b"), publication("a")), dead_letters=(dead_letter(1),))
        committed = await store.commit(claim, batch)
        expected = [publication("b"), publication("a"), publication("correlator-1"), publication("unreadable-1")]
        assert [row.publication for row in committed.publications] == expected
        assert await store.waiting_publications() == committed.publications
        first, second, *rest = committed.publications
        assert [row.id for row in committed.publications] == sorted(row.id for row in committed.publications)
        later = await store.commit(
            committed.claim, FoldedBatch(1, publications=(publication("c"),), acknowledged=(first.id, 10**6))
        )
        assert await store.waiting_publications() == (second, *rest, *later.publications)
        await store.remove_publications([*(row.id for row in rest), second.id, first.id])
        assert await store.waiting_publications() == later.publications

    async def test_each_partition_has_its_own_publications(self, store: CorrelatorStore) -> None:
        keys = [key_of(partition, number) for number in range(2) for partition in (3, 0, 11)]
        left, right = await store.claim(INCARNATION, [0, 3]), await store.claim(INCARNATION, [11])
        for claim in (left, right):
            own = tuple(publication(key) for key in keys if partition_of(key) in claim.partitions)
            await store.commit(claim, FoldedBatch(1, publications=own))

        async def waiting(*partitions: int) -> list[str]:
            return [row.publication.key for row in await store.waiting_publications(partitions)]

        assert await waiting(0, 3) == [key for key in keys if partition_of(key) != 11]
        assert await waiting(11, 12) == [key for key in keys if partition_of(key) == 11]
        assert await waiting(12) == await waiting() == []
        assert len(await store.waiting_publications()) == len(keys)

    async def test_an_outbox_id_is_never_used_again(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        first = await store.commit(claim, FoldedBatch(1, publications=(publication("a"),)))
        await store.remove_publications([first.publications[0].id])
        second = await store.commit(first.claim, FoldedBatch(1, publications=(publication("b"),)))
        assert second.publications[0].id > first.publications[0].id

    # dead letters

    async def test_a_dead_letter_is_recorded_and_published_once(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        letter = dead_letter(3, key="a")
        first = await store.commit(claim, FoldedBatch(3, dead_letters=(letter, letter)))
        assert [row.publication for row in first.publications] == list(letter.publications)
        again = replace(letter, dead_letter=replace(letter.dead_letter, detail="other"))
        second = await store.commit(first.claim, FoldedBatch(4, dead_letters=(again, dead_letter(4))))
        assert [row.publication for row in second.publications] == list(dead_letter(4).publications)
        assert await store.get_dead_letter("correlator", 3) == letter.dead_letter
        assert await store.get_dead_letter("correlator", 4) == dead_letter(4).dead_letter
        assert await store.get_dead_letter("correlator", 5) is None
        assert await store.get_dead_letter("payments", 3) is None

    async def test_participants_give_up_on_one_event_apart(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        letters = (dead_letter(3), dead_letter(3, participant="payments"))
        committed = await store.commit(claim, FoldedBatch(3, dead_letters=letters))
        assert len(committed.publications) == 4
        assert await store.get_dead_letter("payments", 3) == letters[1].dead_letter

    async def test_a_participant_publishes_its_own_copy(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        recorded = given_up(3, at_sequence=5)
        committed = await store.commit(claim, FoldedBatch(5, dead_letters=(recorded,)))
        assert committed.publications == ()
        assert await store.waiting_publications() == ()
        assert await store.get_dead_letter("payments", 3) == recorded.dead_letter

    @pytest.mark.parametrize("state", [state for state in DeadLetterState if state is not DeadLetterState.OPEN])
    async def test_a_dead_letter_is_closed(self, store: CorrelatorStore, state: DeadLetterState) -> None:
        claim = await store.claim(INCARNATION)
        letters = (given_up(3, at_sequence=5), given_up(3, at_sequence=6, participant="shipping"))
        claim = (await store.commit(claim, FoldedBatch(6, dead_letters=letters))).claim
        ends = (closed(3, at_sequence=8, state=state, actor="ada@büro", reason="paid"), closed(4, at_sequence=9))
        committed = await store.commit(claim, FoldedBatch(9, closed_dead_letters=ends))
        assert committed.publications == ()
        expected = replace(
            letters[0].dead_letter,
            state=state,
            close_time=at(8),
            state_sequence=8,
            close_actor="ada@büro",
            close_reason="paid",
        )
        assert await store.get_dead_letter("payments", 3) == expected
        assert await store.get_dead_letter("shipping", 3) == letters[1].dead_letter
        assert await store.get_dead_letter("payments", 4) is None
        page = await store.list_dead_letters(DeadLetterQuery())
        assert page.dead_letters == (letters[1].dead_letter, expected)

    async def test_a_closed_dead_letter_stays_as_it_was_closed(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        batch = FoldedBatch(
            8, dead_letters=(given_up(3, at_sequence=5),), closed_dead_letters=(closed(3, at_sequence=8),)
        )
        claim = (await store.commit(claim, batch)).claim
        later = closed(3, at_sequence=9, state=DeadLetterState.DISCARDED)
        await store.commit(claim, FoldedBatch(9, closed_dead_letters=(later,)))
        found = await store.get_dead_letter("payments", 3)
        assert found is not None
        assert (found.state, found.close_time) == (DeadLetterState.REDRIVEN, at(8))

    async def test_what_names_another_step_closes_no_dead_letter(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        letter = given_up(3, at_sequence=5)
        end = closed(3, at_sequence=8, step="ship-order")
        await store.commit(claim, FoldedBatch(8, dead_letters=(letter,), closed_dead_letters=(end,)))
        assert await store.get_dead_letter("payments", 3) == letter.dead_letter

    async def test_a_closed_dead_letter_opens_again_at_its_place(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        letters = (given_up(3, at_sequence=5), given_up(4, at_sequence=6))
        claim = (await store.commit(claim, FoldedBatch(6, dead_letters=letters))).claim
        end = closed(3, at_sequence=8, actor="ada", reason="paid")
        claim = (await store.commit(claim, FoldedBatch(8, closed_dead_letters=(end,)))).claim
        again = given_up(3, at_sequence=9, attempts=6)
        again = replace(again, dead_letter=replace(again.dead_letter, reason=Reason.REJECTED))
        await store.commit(claim, FoldedBatch(9, dead_letters=(again,)))
        assert await store.get_dead_letter("payments", 3) == again.dead_letter
        page = await store.list_dead_letters(DeadLetterQuery())
        assert page.dead_letters == (letters[1].dead_letter, again.dead_letter)

    async def test_without_a_saga_a_closed_dead_letter_opens_only_after_more_tries(
        self, store: CorrelatorStore
    ) -> None:
        claim = await store.claim(INCARNATION)
        first, later = (replace(given_up(3, at_sequence=n, attempts=n).dead_letter, key="") for n in (5, 9))
        end = closed(3, at_sequence=6)
        late = replace(first, state_sequence=7)
        batch = FoldedBatch(7, dead_letters=[NewDeadLetter(first), NewDeadLetter(late)], closed_dead_letters=(end,))
        claim = (await store.commit(claim, batch)).claim
        found = await store.get_dead_letter("payments", 3)
        assert found is not None
        assert (found.state, found.state_sequence) == (DeadLetterState.REDRIVEN, 6)
        await store.commit(claim, FoldedBatch(9, dead_letters=[NewDeadLetter(later)]))
        assert await store.get_dead_letter("payments", 3) == later

    async def test_what_is_published_of_a_dead_letter_is_so_again_where_it_opens_again(
        self, store: CorrelatorStore
    ) -> None:
        claim = await store.claim(INCARNATION)
        claim = (await store.commit(claim, FoldedBatch(3, dead_letters=(dead_letter(3),)))).claim
        end = closed(3, at_sequence=4, participant="correlator")
        claim = (await store.commit(claim, FoldedBatch(4, closed_dead_letters=(end,)))).claim
        again = replace(dead_letter(3), dead_letter=replace(dead_letter(3).dead_letter, state_sequence=5))
        committed = await store.commit(claim, FoldedBatch(5, dead_letters=(again,)))
        assert [row.publication for row in committed.publications] == list(again.publications)

    async def test_a_dead_letter_that_is_open_is_not_recorded_anew(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        first = given_up(3, at_sequence=5)
        claim = (await store.commit(claim, FoldedBatch(5, dead_letters=(first,)))).claim
        await store.commit(claim, FoldedBatch(6, dead_letters=(given_up(3, at_sequence=6, attempts=9),)))
        assert await store.get_dead_letter("payments", 3) == first.dead_letter

    async def test_what_one_batch_says_of_a_dead_letter_is_taken_in_stream_order(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        ending_closed, ending_open = given_up(1, at_sequence=10), given_up(2, at_sequence=11)
        open_again = given_up(2, at_sequence=15, attempts=6)
        batch = FoldedBatch(
            position=15,
            dead_letters=(open_again, ending_closed, ending_open),
            closed_dead_letters=(closed(2, at_sequence=13), closed(1, at_sequence=12)),
        )
        await store.commit(claim, batch)
        expected = replace(
            ending_closed.dead_letter, state=DeadLetterState.REDRIVEN, close_time=at(12), state_sequence=12
        )
        assert await store.get_dead_letter("payments", 1) == expected
        assert await store.get_dead_letter("payments", 2) == open_again.dead_letter
        page = await store.list_dead_letters(DeadLetterQuery())
        assert page.dead_letters == (open_again.dead_letter, expected)

    async def test_reading_events_again_changes_no_dead_letter(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        batches = (
            FoldedBatch(9, dead_letters=(given_up(3, at_sequence=5), given_up(4, at_sequence=6), dead_letter(7))),
            FoldedBatch(
                9,
                closed_dead_letters=(
                    closed(3, at_sequence=8),
                    closed(4, at_sequence=9),
                    closed(7, at_sequence=9, participant="correlator"),
                ),
            ),
            FoldedBatch(9, dead_letters=(given_up(4, at_sequence=10, attempts=6),)),
        )
        for batch in batches:
            claim = (await store.commit(claim, batch)).claim
        before = await everything(store, "a")
        for batch in batches:
            committed = await store.commit(claim, batch)
            claim = committed.claim
            assert committed.publications == ()
            assert await everything(store, "a") == before

    async def test_a_participants_dead_letter_shows_what_the_history_keeps_of_the_event(
        self, store: CorrelatorStore
    ) -> None:
        claim = await store.claim(INCARNATION)
        kept_without = saga("a", definition="drone-delivery", history=[entry(1), entry(2)])
        claim = (await store.commit(claim, FoldedBatch(2, new(kept_without)))).claim
        sagas = (
            saga("a", history=[entry(1), entry(2), entry(3, type_="payments.v1.PaymentProcessed"), entry(5)]),
            saga("b", history=[entry(4)]),
        )
        letters = [given_up(sequence, at_sequence=9) for sequence in range(1, 7)]
        payloads = {sequence: b"%d" % sequence for sequence in (2, 3, 4)} | {5: b""}
        claim = (await store.commit(claim, FoldedBatch(9, new(*sagas), payloads, dead_letters=letters))).claim
        shown = [await store.get_dead_letter("payments", sequence) for sequence in range(1, 7)]
        # without a payload, with one, of another type, of another saga, an empty one, not in any history
        assert [one.payload for one in shown if one is not None] == [None, b"2", None, None, b"", None]
        page = await store.list_dead_letters(DeadLetterQuery())
        assert [one.payload for one in page.dead_letters] == [None] * 6
        own = replace(dead_letter(2, key="a").dead_letter, payload=b"own")
        await store.commit(claim, FoldedBatch(9, dead_letters=(NewDeadLetter(own),)))
        found = await store.get_dead_letter("correlator", 2)
        assert found == own

    async def test_dead_letters_are_listed_newest_first_also_while_new_ones_come(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        claim = (await store.commit(claim, FoldedBatch(5, dead_letters=[dead_letter(n) for n in range(1, 6)]))).claim
        first = await store.list_dead_letters(DeadLetterQuery(limit=2))
        await store.commit(claim, FoldedBatch(6, dead_letters=(dead_letter(6),)))
        second = await store.list_dead_letters(DeadLetterQuery(limit=2, before=first.next))
        third = await store.list_dead_letters(DeadLetterQuery(limit=2, before=second.next))
        pages = [[letter.sequence for letter in page.dead_letters] for page in (first, second, third)]
        assert pages == [[5, 4], [3, 2], [1]]
        assert third.next is None

    @pytest.mark.parametrize(
        ("text", "sequences"),
        [
            ("saga_id = a", [5, 3]),
            ("saga_id:*", [5, 3]),
            ("NOT saga_id:*", [4, 2, 1]),
            ("reason = TOO_LARGE OR participant = payments", [5, 4, 2]),
            ("reason != TOO_LARGE AND sequence >= 3", [5, 4, 3]),
            (f'stream_time < "{at(2).isoformat()}"', [1]),
            ("event_type = orders.v1.OrderShipped", []),
            ("definition = order-fulfilment", [5]),
            ("step = take-payment AND definition != drone-delivery", [5]),
            ("step:* OR definition:*", [5]),
            ("step != take-payment", [4, 3, 2, 1]),
            ('detail = "tried 3 times"', [5]),
            ('detail != "tried 3 times" AND sequence > 3', [4]),
            ("state = OPEN", [5, 4, 3, 2]),
            ("NOT state = DEAD_LETTER_STATE_OPEN", [1]),
            ("state = DISCARDED OR sequence = 2", [2, 1]),
            ("state = SUPERSEDED", []),
        ],
    )
    async def test_dead_letters_are_filtered(self, store: CorrelatorStore, text: str, sequences: list[int]) -> None:
        claim = await store.claim(INCARNATION)
        letters = (
            dead_letter(1),
            dead_letter(2, reason=Reason.TOO_LARGE),
            dead_letter(3, key="a"),
            dead_letter(4, participant="payments"),
            given_up(5, at_sequence=5),
        )
        end = closed(1, at_sequence=5, state=DeadLetterState.DISCARDED, participant="correlator")
        await store.commit(claim, FoldedBatch(5, dead_letters=letters, closed_dead_letters=(end,)))
        page = await store.list_dead_letters(DeadLetterQuery(parse_filter(text, DEAD_LETTER_FIELDS)))
        assert [letter.sequence for letter in page.dead_letters] == sequences

    @pytest.mark.parametrize("group_by", [(one,) for one in DeadLetterField] + [tuple(DeadLetterField)[:5]])
    async def test_groups_are_what_their_dead_letters_have_in_common(
        self, store: CorrelatorStore, group_by: tuple[DeadLetterField, ...]
    ) -> None:
        letters = [
            dead_letter(1),
            dead_letter(2, key="a", reason=Reason.RULE_VIOLATION),
            dead_letter(3, key="b"),
            *(given_up(n, at_sequence=n, attempts=3 + n % 2) for n in range(4, 9)),
            given_up(9, at_sequence=9, participant="shipping"),
        ]
        ends = (closed(5, at_sequence=10), closed(7, at_sequence=11))
        await store.commit(
            await store.claim(INCARNATION), FoldedBatch(11, dead_letters=letters, closed_dead_letters=ends)
        )
        found = [group async for group in groups_of(store, DeadLetterGroupQuery(group_by, limit=2))]
        assert [(-group.count, group.row) for group in found] == sorted((-group.count, group.row) for group in found)
        assert sum(group.count for group in found) == len(letters)
        assert sum(group.open for group in found) == len(letters) - len(ends)
        for group in found:
            values = {name: value for name, value in group.values.items() if name != "failure"}
            assert tuple(values) == DeadLetterGroupQuery(group_by).fields
            text = filter_text("sequence > 0", values)
            page = await store.list_dead_letters(DeadLetterQuery(parse_filter(text, DEAD_LETTER_FIELDS)))
            assert len(page.dead_letters) == group.count
            assert sum(one.state is DeadLetterState.OPEN for one in page.dead_letters) == group.open
            times = [one.stream_time for one in page.dead_letters]
            assert (group.first_time, group.last_time) == (min(times), max(times))
            if DeadLetterField.FAILURE in group_by:
                alike = parse_filter(f"failure = {group.values['failure']}", DEAD_LETTER_FIELDS)
                assert await store.list_dead_letters(DeadLetterQuery(alike)) == page
                assert {one.failure for one in page.dead_letters} == {group.values["failure"]}

    async def test_dead_letters_of_no_saga_are_a_group_and_so_are_those_of_no_step(
        self, store: CorrelatorStore
    ) -> None:
        letters = [dead_letter(1), dead_letter(2), dead_letter(3, key="a"), given_up(4, at_sequence=4)]
        await store.commit(await store.claim(INCARNATION), FoldedBatch(4, dead_letters=letters))
        both = DeadLetterGroupQuery((DeadLetterField.SAGA, DeadLetterField.STEP))
        assert [(dict(group.values), group.count) async for group in groups_of(store, both)] == [
            ({"saga_id": None, "definition": None, "step": None}, 2),
            ({"saga_id": "a", "definition": None, "step": None}, 1),
            ({"saga_id": "a", "definition": "order-fulfilment", "step": "take-payment"}, 1),
        ]
        of_payments = parse_filter("participant = payments", DEAD_LETTER_FIELDS)
        (group,) = (await store.group_dead_letters(replace(both, filter=of_payments))).groups
        assert (group.count, group.row) == (1, 4)
        nobodys = parse_filter("participant = nobody", DEAD_LETTER_FIELDS)
        assert (await store.group_dead_letters(replace(both, filter=nobodys))).groups == ()

    async def test_open_dead_letters_are_counted_and_found_oldest_first(self, store: CorrelatorStore) -> None:
        claim = await store.claim(INCARNATION)
        letters = [*(given_up(n, at_sequence=10 + n) for n in range(1, 7)), dead_letter(20)]
        ends = (closed(2, at_sequence=21), closed(4, at_sequence=22, state=DeadLetterState.DISCARDED))
        await store.commit(claim, FoldedBatch(22, dead_letters=letters, closed_dead_letters=ends))
        of_payments = parse_filter("participant = payments", DEAD_LETTER_FIELDS)
        assert (await store.count_open_dead_letters()).count == 5
        counted = await store.count_open_dead_letters(of_payments)
        assert (counted.count, counted.last_state_sequence) == (4, 16)
        pages = []
        after: int | None = 0
        while after is not None:
            page = await store.open_dead_letters(counted, of_payments, after=after, limit=2)
            pages.append(page.dead_letters)
            after = page.next
        one, three, five, six = (letters[n - 1].dead_letter for n in (1, 3, 5, 6))
        assert pages == [(one, three), (five, six)]
        nothing = parse_filter("participant = shipping", DEAD_LETTER_FIELDS)
        counted = await store.count_open_dead_letters(nothing)
        assert counted.count == 0
        assert (await store.open_dead_letters(counted, nothing)).dead_letters == ()

    async def test_what_has_changed_since_it_was_counted_is_not_among_the_open_dead_letters(
        self, store: CorrelatorStore
    ) -> None:
        claim = await store.claim(INCARNATION)
        letters = [given_up(n, at_sequence=10 + n) for n in range(1, 6)]
        end = closed(5, at_sequence=16)
        claim = (await store.commit(claim, FoldedBatch(16, dead_letters=letters, closed_dead_letters=(end,)))).claim
        counted = await store.count_open_dead_letters()
        assert counted.count == 4
        meanwhile = FoldedBatch(
            30,
            # closed, closed and open again, open again that was closed when it was counted, and a new one
            dead_letters=[given_up(n, at_sequence=20 + n, attempts=6) for n in (2, 5, 6)],
            closed_dead_letters=(closed(1, at_sequence=17), closed(2, at_sequence=18)),
        )
        await store.commit(claim, meanwhile)
        page = await store.open_dead_letters(counted)
        assert page.dead_letters == (letters[2].dead_letter, letters[3].dead_letter)
        assert page.next is None
        assert (await store.count_open_dead_letters()).count == 5

    # definitions

    async def test_definitions_that_left_the_files_stay_and_are_inactive(self, store: CorrelatorStore) -> None:
        assert await store.definitions() == ()
        await store.activate([definition(), definition("drone-delivery")], replica="correlator-1")
        await store.activate([definition(version=2), definition("drone-delivery")], replica="correlator-1")
        found = [(one.name, one.version, one.is_active) for one in await store.definitions()]
        expected = [("drone-delivery", 1, True), ("order-fulfilment", 2, True), ("order-fulfilment", 1, False)]
        assert found == expected
        await store.activate([definition()], replica="correlator-1")
        assert [(o.name, o.version) for o in await store.definitions() if o.is_active] == [("order-fulfilment", 1)]

    async def test_a_definition_comes_back_as_it_was(self, store: CorrelatorStore) -> None:
        await store.activate([definition(description="Größe")], replica="correlator-1")
        (stored,) = await store.definitions()
        assert stored.definition() == definition(description="Größe")
        assert stored.digest == definition(description="Größe").digest

    async def test_what_is_remembered_is_inactive_and_changes_nothing(self, store: CorrelatorStore) -> None:
        await store.activate([definition(description="ours")], replica="correlator-1")
        first, second = definition(description="theirs"), definition(version=2)
        await store.remember([first, second, second, definition("drone-delivery")])
        found = [(one.name, one.version, one.is_active) for one in await store.definitions()]
        expected = [("drone-delivery", 1, False), ("order-fulfilment", 2, False), ("order-fulfilment", 1, True)]
        assert found == expected
        assert (await store.definitions())[2].definition() == definition(description="ours")
        assert (await store.definitions())[1].definition() == second
        before = await store.definitions()
        await store.remember([second, definition("drone-delivery", description="other")])
        await store.remember([])
        assert await store.definitions() == before

    async def test_what_was_remembered_can_be_activated(self, store: CorrelatorStore) -> None:
        await store.remember([definition(), definition(version=2)])
        await store.activate([definition(version=2)], replica="correlator-1")
        found = [(one.version, one.is_active) for one in await store.definitions()]
        assert found == [(2, True), (1, False)]

    async def test_who_is_started_last_says_what_is_active(self, store: CorrelatorStore) -> None:
        old, new_one = definition(), definition(version=2)
        for replica in ("one", "two", "three"):
            assert await store.activate([old], replica=replica)
        for replica in ("two", "three"):
            await store.leave(replica)
            assert await store.activate([new_one], replica=replica)
            assert [one.version for one in await store.definitions() if one.is_active] == [2]
        await store.leave("two")
        assert await store.activate([old], replica="two")
        assert [one.version for one in await store.definitions() if one.is_active] == [1]

    async def test_who_only_comes_back_does_not_go_back_to_earlier_definitions(self, store: CorrelatorStore) -> None:
        old, new_one = definition(), definition(version=2)
        await store.activate([old, definition("drone-delivery")], replica="one")
        await store.activate([new_one], replica="two")
        for _ in range(2):
            assert not await store.activate([definition("drone-delivery"), old], replica="one")
            assert await store.activate([new_one], replica="two")
            found = [(one.name, one.version) for one in await store.definitions() if one.is_active]
            assert found == [("order-fulfilment", 2)]
        assert await store.activate([new_one], replica="one")
        await store.leave("one")
        await store.leave("nobody")
        assert await store.activate([old], replica="one")
        assert not await store.activate([new_one], replica="two")

    async def test_a_definition_does_not_change_beside_a_replica_that_follows_it(self, store: CorrelatorStore) -> None:
        changed = definition(description="changed")
        one = Replica("one", "1")
        await store.activate([definition()], replica="one")
        await store.leases.join(one, 1, is_able=True)
        with pytest.raises(DefinitionError, match=r"another replica .* raise the version to 2"):
            await store.activate([changed], replica="two")
        await store.leases.leave(one)
        assert await store.activate([changed], replica="two"), "who died without leaving is no hindrance"

    async def test_who_died_is_known_until_the_definitions_have_changed_twice(self, store: CorrelatorStore) -> None:
        """It may come back as long as a deployment takes; a name that nobody has any more is forgotten at last."""
        first, second, third = ([definition(version=version)] for version in (1, 2, 3))
        for replica in ("lives", "dead"):
            assert await store.activate(first, replica=replica)
        for replica in ("two", "three"):
            assert await store.activate(second, replica=replica)
            assert not await store.activate(first, replica="dead")
        await store.leases.join(Replica("lives", "1"), 1, is_able=True)
        assert await store.activate(third, replica="four")
        assert not await store.activate(second, replica="two")
        assert not await store.activate(first, replica="lives")
        assert await store.activate(first, replica="dead"), "it starts like any new one"

    async def test_a_definition_that_no_saga_keeps_may_change(self, store: CorrelatorStore) -> None:
        await record(store, saga("a", version=2), saga("a", definition="drone-delivery"))
        await store.activate([definition()], replica="correlator-1")
        await store.activate([definition(description="changed")], replica="correlator-1")
        assert [one.definition() for one in await store.definitions()] == [definition(description="changed")]

    async def test_a_definition_that_sagas_keep_does_not_change(self, store: CorrelatorStore) -> None:
        await store.activate([definition(), definition("drone-delivery")], replica="correlator-1")
        await record(store, saga("a"), saga("b", definition="drone-delivery", started=None))
        before = await store.definitions()
        changed = [
            definition(description="changed"),
            definition("drone-delivery", description="changed"),
            definition("brand-new"),
        ]
        with pytest.raises(DefinitionError, match="raise the version") as refused:
            await store.activate(changed, replica="correlator-1")
        assert [fault.where for fault in refused.value.faults] == [
            "saga definition order-fulfilment version 1",
            "saga definition drone-delivery version 1",
        ]
        assert await store.definitions() == before
        await store.activate([definition(), definition(version=2, description="changed")], replica="correlator-1")
        assert len(await store.definitions()) == 3

    # lists

    async def test_a_list_has_started_sagas_without_histories(self, store: CorrelatorStore) -> None:
        shown = saga("a", history=[entry(1)])
        await record(store, shown, saga("b", started=None))
        assert (await store.list_sagas(SagaQuery())).sagas == (replace(shown, history=()),)

    @pytest.mark.parametrize("limit", [1, 2, 3, 100])
    @pytest.mark.parametrize(
        ("order", "keys"),
        [(SagaOrder.UPDATE_TIME, "cbade"), (SagaOrder.START_TIME, "abcde"), (SagaOrder.DEADLINE, "dbcae")],
    )
    async def test_orders_run_both_ways_through_ties_and_gaps(
        self, store: CorrelatorStore, order: SagaOrder, keys: str, limit: int
    ) -> None:
        await record(
            store,
            saga("a", started=1, updated=30, deadline=None),
            saga("b", started=1, updated=20, deadline=60),
            saga("c", started=1, updated=10, deadline=60),
            saga("d", started=2, updated=40, deadline=50.000001),
            saga("e", started=3, updated=50, deadline=None),
        )
        assert await walk(store, SagaQuery(order=order, limit=limit)) == list(keys)
        assert await walk(store, SagaQuery(order=order, descending=True, limit=limit)) == list(reversed(keys))

    async def test_sagas_that_change_between_pages_are_met_again_and_none_is_skipped(
        self, store: CorrelatorStore
    ) -> None:
        sagas = {f"k{number}": saga(f"k{number}", updated=number, history=[entry(number)]) for number in range(1, 7)}
        claim = await record(store, *sagas.values())
        query = SagaQuery(limit=2)
        first = await store.list_sagas(query)
        moved = [replace(sagas[key], update_time=at(100), revision=2) for key in ("k1", "k3")]
        changes = tuple(SagaChange(sagas[one.key], one) for one in moved)
        await store.commit(claim, FoldedBatch(9, (*changes, *new(saga("k0", updated=50)))))
        rest = await walk(store, replace(query, after=first.next))
        assert [found.key for found in first.sagas] == ["k1", "k2"]
        assert rest == ["k4", "k5", "k6", "k0", "k1", "k3"]

    async def test_by_start_each_saga_is_met_once_whatever_changes(self, store: CorrelatorStore) -> None:
        sagas = {f"k{number}": saga(f"k{number}", started=number) for number in range(1, 7)}
        claim = await record(store, *sagas.values())
        query = SagaQuery(order=SagaOrder.START_TIME, limit=2)
        first = await store.list_sagas(query)
        changes = tuple(
            SagaChange(one, replace(one, update_time=at(100), status=Status.COMPLETED)) for one in sagas.values()
        )
        await store.commit(claim, FoldedBatch(9, changes))
        rest = await walk(store, replace(query, after=first.next))
        assert [*(found.key for found in first.sagas), *rest] == list(sagas)

    @pytest.mark.parametrize(
        ("text", "keys"),
        [
            ("", "abcd"),
            ("status = RUNNING", "ab"),
            ("status = SAGA_STATUS_RUNNING AND health = OVERDUE", "b"),
            ("-status = RUNNING", "cd"),
            ("status != RUNNING", "cd"),
            ("definition = drone-delivery OR saga_id = b", "bd"),
            ("(definition = drone-delivery OR saga_id = b) AND NOT health = OVERDUE", "d"),
            ("version >= 2", "c"),
            ("cause = STEP_FAILURE", "c"),
            ("end_time:*", "d"),
            (f'end_time < "{at(1000).isoformat()}"', "d"),
            (f'NOT end_time < "{at(1000).isoformat()}"', "abc"),
            (f'end_time != "{at(9).isoformat()}"', "abc"),
            (f'end_time = "{at(9).isoformat()}"', "d"),
            (f'update_time <= "{at(2).isoformat()}"', "ab"),
            (f'start_time > "{at(0).isoformat()}" AND deadline > "{at(0).isoformat()}"', "d"),
            ("deadline:*", "abd"),
            ("saga_id = none", ""),
        ],
    )
    async def test_sagas_are_filtered_and_counted(self, store: CorrelatorStore, text: str, keys: str) -> None:
        await record(
            store,
            saga("a", updated=1),
            saga("b", updated=2, health=Health.OVERDUE),
            saga("c", updated=3, version=2, status=Status.COMPENSATING, deadline=None),
            saga("d", updated=4, definition="drone-delivery", status=Status.COMPLETED, started=0.5, ended=9),
            saga("e", updated=5, started=None),
        )
        wanted = parse_filter(text, SAGA_FIELDS)
        assert await walk(store, SagaQuery(wanted, limit=2)) == list(keys)
        assert sum(count.count for count in await store.summarize(wanted)) == len(keys)

    async def test_a_summary_counts_what_stands_alike(self, store: CorrelatorStore) -> None:
        await record(
            store,
            saga("a"),
            saga("b"),
            saga("c", health=Health.STALLED),
            saga("d", status=Status.COMPLETED),
            saga("d", definition="drone-delivery"),
            saga("e", started=None),
        )
        assert await store.summarize() == (
            SagaCount("drone-delivery", Status.RUNNING, Health.ON_TIME, 1),
            SagaCount("order-fulfilment", Status.RUNNING, Health.ON_TIME, 2),
            SagaCount("order-fulfilment", Status.RUNNING, Health.STALLED, 1),
            SagaCount("order-fulfilment", Status.COMPLETED, Health.ON_TIME, 1),
        )

    # deadlines

    async def test_due_are_open_sagas_by_their_next_deadline(self, store: CorrelatorStore) -> None:
        step_first, saga_first, was_told, over, unstarted = (key_of(3, number) for number in range(5))
        told = saga(was_told, deadline=90)
        event_id = overdue_id(told, told.steps[1])
        overdue = replace(entry(3, type_="choreography.v1.StepOverdue").fact, source=CORRELATOR, id=event_id)
        await record(
            store,
            saga(step_first, deadline=1800),
            saga(saga_first, deadline=30),
            replace(told, revision=1, history=(HistoryEntry(overdue, Disposition.APPLIED),)),
            saga(over, status=Status.COMPLETED, deadline=10),
            saga(unstarted, started=None, deadline=10),
            saga(key_of(4), deadline=20),
        )

        async def due(seconds: float, limit: int = 10) -> list[tuple[str, datetime]]:
            return [(found.key, found.deadline) for found in await store.due(at(seconds), limit, 3)]

        assert await due(29.999999) == []
        assert await due(30) == [(saga_first, at(30))]
        assert await due(90) == [(saga_first, at(30)), (step_first, at(60)), (was_told, at(90))]
        assert await due(90, limit=1) == [(saga_first, at(30))]
        (other,) = await store.due(at(90), 10, 4)
        assert (other.definition, other.key, other.deadline) == ("order-fulfilment", key_of(4), at(20))
        assert await store.due(at(90), 10, 5) == ()

    async def test_sagas_under_one_key_are_due_apart(self, store: CorrelatorStore) -> None:
        key = key_of(7)
        await record(store, saga(key, deadline=20), saga(key, definition="drone-delivery", deadline=20))
        due = [(found.definition, found.deadline) for found in await store.due(at(20), 10, 7)]
        assert due == [("order-fulfilment", at(20)), ("drone-delivery", at(20))]

    async def test_each_partition_has_its_earliest_deadline(self, store: CorrelatorStore) -> None:
        assert await store.next_deadlines() == {}
        first, last = key_of(0), key_of(PARTITIONS - 1)
        early = saga(first, deadline=20)
        over = saga(key_of(5), status=Status.COMPENSATED, deadline=5)
        claim = await record(store, early, saga(key_of(0, 1), deadline=40), saga(last, deadline=30.000001), over)
        assert await store.next_deadlines() == {0: at(20), PARTITIONS - 1: at(30.000001)}
        ended = replace(early, status=Status.COMPLETED)
        claim = (await store.commit(claim, FoldedBatch(3, (SagaChange(early, ended),)))).claim
        assert await store.next_deadlines() == {0: at(40), PARTITIONS - 1: at(30.000001)}
        await store.commit(claim, FoldedBatch(4, (SagaChange(ended, early),)))
        assert await store.next_deadlines() == {0: at(20), PARTITIONS - 1: at(30.000001)}
        assert await store.next_deadlines({5, PARTITIONS - 1}) == {PARTITIONS - 1: at(30.000001)}
        assert await store.next_deadlines([5]) == {}

    # all of it: what snapshots and replays are made of

    async def test_an_export_has_all_that_there_is_in_the_order_that_is_promised(self, store: CorrelatorStore) -> None:
        await filled(store)
        items = await exported(store)
        kinds = [type(item) for item in items]
        assert kinds == sorted(kinds, key=[*dict.fromkeys(kinds)].index), "what is of one kind stands together"
        positions = [item for item in items if isinstance(item, PartitionPosition)]
        assert [one.partition for one in positions] == sorted(ALL_PARTITIONS)
        assert {one.partition: (one.position, one.time) for one in positions} == {
            partition: (12, at(12)) if partition in {2, 5} else (9, at(9)) for partition in ALL_PARTITIONS
        }
        sagas = [item for item in items if isinstance(item, RecordedSaga)]
        assert [(one.saga.key, one.saga.definition) for one in sagas] == [
            ("B", "order-fulfilment"), ("a", "order-fulfilment"), ("a", "zeta"), ("b", "order-fulfilment"),
        ]  # fmt: skip
        assert sagas == [found for key in "Bab" for found in await store.get_sagas(key)]
        letters = [(item.sequence, item.state) for item in items if isinstance(item, DeadLetter)]
        assert letters == [(7, DeadLetterState.REDRIVEN), (8, DeadLetterState.OPEN)]
        waiting = [row.publication for row in await store.waiting_publications()]
        assert [item for item in items if isinstance(item, Publication)] == waiting
        assert [item for item in items if isinstance(item, StoredDefinition)] == list(await store.definitions())

    async def test_the_positions_tell_how_far_each_partition_is(self, store: CorrelatorStore) -> None:
        assert await store.positions() == {}
        await filled(store)
        assert await store.positions() == {p: 12 if p in {2, 5} else 9 for p in ALL_PARTITIONS}

    async def test_what_was_exported_fills_an_empty_store(self, store: CorrelatorStore) -> None:
        other = MemoryCorrelatorStore()
        await filled(other)
        items = await exported(other)
        assert await store.restore(lambda: iter(items))
        restored = await exported(store)
        inactive = [replace(one, is_active=False) if isinstance(one, StoredDefinition) else one for one in items]
        assert restored == inactive
        whole = await store.claim(INCARNATION)
        assert (whole.position, whole.taken_in) == (9, {2: 12, 5: 12}), "each goes on where it stood"
        assert (await store.claim(INCARNATION, {2, 5})).position == 12
        [page] = [await store.list_sagas(SagaQuery(limit=10))]
        assert len(page.sagas) == 3
        assert await store.due(at(2000), 10, partition_of("b"))

    async def test_a_store_with_a_position_is_not_filled(self, store: CorrelatorStore) -> None:
        other = MemoryCorrelatorStore()
        await filled(other)
        items = await exported(other)
        await record(store, saga("mine"))
        before = await exported(store)
        assert not await store.restore(lambda: iter(items))
        assert await exported(store) == before

    async def test_a_store_is_not_filled_with_sagas_that_keep_another_content_of_its_definition(
        self, store: CorrelatorStore
    ) -> None:
        other = MemoryCorrelatorStore()
        await filled(other)
        items = await exported(other)
        await store.activate([definition(description="Other orders.")], replica="a")
        with pytest.raises(DefinitionError, match="order-fulfilment version 1"):
            await store.restore(lambda: iter(items))
        assert not (await store.load(["a"]))["a"]
        await store.activate([definition(version=2)], replica="a")
        assert await store.restore(lambda: [item for item in items if not isinstance(item, StoredDefinition)])

    async def test_contents_that_end_in_an_error_leave_the_store_empty(self, store: CorrelatorStore) -> None:
        other = MemoryCorrelatorStore()
        await filled(other)
        items = await exported(other)

        def damaged() -> Iterator[Item]:
            yield from items
            raise SnapshotError("is damaged")

        with pytest.raises(SnapshotError):
            await store.restore(damaged)
        assert await exported(store) == []
        assert await store.restore(lambda: iter(items))

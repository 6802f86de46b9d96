"""What operators decide about dead letters, over gRPC and a real broker: one, those that match, again, and at once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc
from choreography.v1.dead_letter_events_pb2 import DeadLetterDiscarded, DeadLetterRedriven
from farandole.broker.connection import Broker
from farandole.broker.publisher import Publisher
from farandole.broker.stored import stored_on
from farandole.correlator.dead_letter_service import DeadLetterService
from farandole.correlator.dead_letters import DeadLetter, DeadLetterState
from farandole.correlator.events_stream import BrokerEventsStream
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.operator_verbs import REDRIVE, Decision, OperatorVerbs
from farandole.correlator.queries import DeadLetterQuery
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore, FoldedBatch, NewDeadLetter
from farandole.database import Database
from farandole.envelope import Event, Publication, decode
from farandole.partitions import PARTITIONS, partition_key, partition_of
from farandole.reasons import Reason
from farandole.registry import Registry
from farandole.rpc import HealthMonitor, Problem, Rpc, read_problem, serve
from farandole.saga import Disposition, Health, Status
from farandole.testing.brokers import BrokerUnderTest, connect
from farandole.testing.store_conformance import INCARNATION, closed, dead_letter, given_up
from tests.integration.correlators import HAPPY, REGISTRY, correlating, tell

REDRIVEN, DISCARDED = "choreography.v1.DeadLetterRedriven", "choreography.v1.DeadLetterDiscarded"
ANSWER_SECONDS = 20

Redrive = dead_letter_service_pb2.RedriveDeadLettersRequest
Discard = dead_letter_service_pb2.DiscardDeadLettersRequest
Progress = dead_letter_service_pb2.DeadLetterProgress


class Operator:
    """An operator with a gRPC client of a correlator's service."""

    def __init__(self, stub: dead_letter_service_pb2_grpc.DeadLetterServiceAsyncStub) -> None:
        self.stub = stub

    def redriving(self, **request: Any) -> Any:
        return self.stub.RedriveDeadLetters(Redrive(**{"actor": "ada", "reason": "repaired", **request}))

    def discarding(self, **request: Any) -> Any:
        return self.stub.DiscardDeadLetters(Discard(**{"actor": "bob", "reason": "paid by hand", **request}))

    async def redrive(self, **request: Any) -> Progress:
        """The whole, once all is told."""
        return (await answers(self.redriving(**request)))[-1]

    async def discard(self, **request: Any) -> Progress:
        return (await answers(self.discarding(**request)))[-1]


@asynccontextmanager
async def operating(store: CorrelatorStore, broker: Broker) -> AsyncIterator[Operator]:
    """The service over a store, on a gRPC server."""
    stream = BrokerEventsStream(broker)
    rpc: Rpc[Any] = Rpc(
        dead_letter_service_pb2.DESCRIPTOR.services_by_name["DeadLetterService"],
        dead_letter_service_pb2_grpc.add_DeadLetterServiceServicer_to_server,
        DeadLetterService(store, REGISTRY, stream),
    )
    async with (
        serve("127.0.0.1:0", [rpc], HealthMonitor(), grace_seconds=0.1) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Operator(dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel))
    await stream.stop()


async def answers(call: Any) -> list[Progress]:
    async with asyncio.timeout(ANSWER_SECONDS):
        return [answer.progress async for answer in call]


async def refused(call: Any) -> Problem:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await answers(call)
    return read_problem(error.value)


async def stored(broker: Broker, *types: str) -> list[Event]:
    """The stored events of these types, in stream order."""
    pages = [await stored_on(broker, f"events.{p}.{type_}", 0) for p in range(PARTITIONS) for type_ in types]
    events = [decode(REGISTRY, message) for page in pages for message in page]
    return sorted((one for one in events if isinstance(one, Event)), key=lambda one: one.sequence)


def about(key: str, sequence: int, participant: str = "payments") -> dict[str, object]:
    return {
        "sagaId": key,
        "definition": "order-fulfilment",
        "step": "take-payment",
        "participant": participant,
        "sequence": sequence,
    }


async def publish(broker: Broker, key: str, name: str, body: dict[str, object]) -> None:
    publisher = Publisher(broker)
    await publisher.publish(Publication(key, f"events.{key}.choreography.v1.{name}", {}, json.dumps(body).encode()))
    await publisher.stop()


async def give_up(broker: Broker, key: str, sequence: int, *, attempts: int = 3, detail: str = "no answer") -> None:
    """Says as a participant would that it has given up on an event."""
    told = {
        "eventType": "inventory.v1.ItemsReserved",
        "eventSource": "inventory",
        "eventId": f"e-{key}",
        "reason": "DEAD_LETTER_REASON_RETRIES_EXHAUSTED",
        "detail": detail,
        "attempts": attempts,
    }
    await publish(broker, key, "DeadLetterRecorded", about(key, sequence) | told)


async def until(
    store: CorrelatorStore, sequence: int, condition: Callable[[DeadLetter], bool], *, participant: str = "payments"
) -> DeadLetter:
    """Waits until something holds of a dead letter."""
    async with asyncio.timeout(ANSWER_SECONDS):
        while True:
            found = await store.get_dead_letter(participant, sequence)
            if found is not None and condition(found):
                return found
            await asyncio.sleep(0.02)


def is_open(attempts: int) -> Callable[[DeadLetter], bool]:
    return lambda letter: letter.state is DeadLetterState.OPEN and letter.attempts == attempts


def is_closed(letter: DeadLetter) -> bool:
    return letter.state is not DeadLetterState.OPEN


def key_of(number: int) -> str:
    return f"ord-{number}"


def of_saga(letter: DeadLetter, key: str) -> DeadLetter:
    """The dead letter as it would be of an event of that saga."""
    return replace(letter, key=key, subject=f"events.{partition_of(key)}.{letter.event_type}")


async def with_open(store: CorrelatorStore, count: int) -> None:
    """Records open dead letters, of a saga each, as if the correlator had read of them."""
    letters = [
        NewDeadLetter(of_saga(given_up(n, at_sequence=100_000 + n).dead_letter, key_of(n))) for n in range(1, count + 1)
    ]
    await store.commit(await store.claim(INCARNATION), FoldedBatch(200_000, dead_letters=letters))


async def test_those_that_match_are_redriven_and_their_sagas_say_by_whom_and_why(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator, operating(store, broker) as operator:
        for number in range(1, 5):
            await tell(broker, key_of(number), HAPPY[:2])
            await give_up(broker, key_of(number), number, detail="no answer" if number < 4 else "a bug")
        for number in range(1, 5):
            await until(store, number, is_open(3))
            await correlator.until_saga(key_of(number), lambda saga: saga.health is Health.QUARANTINED)
        progress = await answers(operator.redriving(filter='detail = "no answer"'))
        assert progress[0] == Progress(matched=3)
        assert (progress[-1].matched, progress[-1].told, progress[-1].passed_over) == (3, 3, 0)
        assert progress[-1].dead_letter_id == "payments-3"
        for number in range(1, 4):
            letter = await until(store, number, is_closed)
            assert (letter.state, letter.close_actor, letter.close_reason) == (
                (DeadLetterState.REDRIVEN, "ada", "repaired")
            )
            told = await correlator.until_saga(key_of(number), lambda saga: saga.health is Health.ON_TIME)
            last = told.saga.history[-1]
            assert (last.fact.type, last.fact.source, last.disposition) == (
                (REDRIVEN, "correlator", Disposition.APPLIED)
            )
            body = DeadLetterRedriven.FromString(told.payloads[last.fact.sequence])
            assert (body.actor, body.reason) == ("ada", "repaired")
        untouched = await until(store, 4, is_open(3))
        assert (untouched.close_actor, untouched.close_time) == ("", None)
        request = dead_letter_service_pb2.GetDeadLetterRequest(dead_letter_id="payments-1")
        shown = (await operator.stub.GetDeadLetter(request)).dead_letter
        assert (shown.close_actor, shown.close_reason, shown.HasField("close_time")) == ("ada", "repaired", True)
    redriven = await stored(broker, REDRIVEN)
    assert [(event.key, event.body) for event in redriven] == [
        (
            key_of(number),
            DeadLetterRedriven(
                saga_id=key_of(number),
                definition="order-fulfilment",
                step="take-payment",
                participant="payments",
                sequence=number,
                actor="ada",
                reason="repaired",
            ),
        )
        for number in range(1, 4)
    ]
    rebuilt = MemoryCorrelatorStore()
    async with correlating(broker, rebuilt) as correlator:
        await correlator.problems.until_well()
        assert await rebuilt.list_dead_letters(DeadLetterQuery()) == await store.list_dead_letters(DeadLetterQuery())
        for number in range(1, 5):
            assert await rebuilt.get_sagas(key_of(number)) == await store.get_sagas(key_of(number))


async def test_one_is_discarded_by_its_id(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    async with correlating(broker, store), operating(store, broker) as operator:
        for number in (1, 2):
            await tell(broker, key_of(number), HAPPY[:2])
            await give_up(broker, key_of(number), number)
            await until(store, number, is_open(3))
        assert await operator.discard(dead_letter_id="payments-2") == Progress(
            matched=1, told=1, dead_letter_id="payments-2"
        )
        letter = await until(store, 2, is_closed)
        assert (letter.state, letter.close_actor, letter.close_reason) == (
            (DeadLetterState.DISCARDED, "bob", "paid by hand")
        )
        await until(store, 1, is_open(3))
        for verb in (operator.redriving, operator.discarding):
            problem = await refused(verb(dead_letter_id="payments-2"))
            assert (problem.code, problem.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DEAD_LETTER_CLOSED")
            assert problem.message == "the dead letter payments-2 is DISCARDED by bob: it is not open any more"
    (event,) = await stored(broker, REDRIVEN, DISCARDED)
    assert isinstance(event.body, DeadLetterDiscarded)


async def test_what_is_wrong_in_a_request_is_named_and_nothing_is_told(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    await with_open(store, 2)
    async with operating(store, broker) as operator:
        for wrong, field in (
            ({}, "dead_letter_id"),
            ({"filter": "  "}, "dead_letter_id"),
            ({"dead_letter_id": "payments-1", "filter": "state = OPEN"}, "dead_letter_id"),
            ({"filter": "status = OPEN"}, "filter"),
            ({"dead_letter_id": "payments-1", "actor": ""}, "actor"),
            ({"dead_letter_id": "payments-1", "reason": ""}, "reason"),
        ):
            for verb in (operator.redriving, operator.discarding):
                problem = await refused(verb(**wrong))
                assert (problem.code, problem.fields[0].field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
        problem = await refused(operator.redriving(dead_letter_id="payments-9"))
        assert (problem.code, problem.reason) == (grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND")
        assert await answers(operator.redriving(filter="participant = shipping")) == [Progress()]
    assert await stored(broker, REDRIVEN, DISCARDED) == []


async def test_what_is_told_again_before_it_was_read_is_stored_once(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    await with_open(store, 3)
    async with operating(store, broker) as operator:
        for _ in range(2):
            assert (await operator.redrive(filter="state = OPEN")).told == 3
        assert (await operator.redrive(dead_letter_id="payments-2", actor="bob")).told == 1
    assert [event.key for event in await stored(broker, REDRIVEN)] == [key_of(1), key_of(2), key_of(3)]


async def test_what_is_given_up_on_again_is_redriven_again(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator, operating(store, broker) as operator:
        await tell(broker, "o1", HAPPY[:2])
        for attempts in (3, 6, 9):
            await give_up(broker, "o1", 2, attempts=attempts)
            await until(store, 2, is_open(attempts))
            assert (await operator.redrive(dead_letter_id="payments-2")).told == 1
            await until(store, 2, is_closed)
        recorded = await correlator.until_saga("o1", lambda saga: saga.health is Health.ON_TIME)
    redriven = [entry for entry in recorded.saga.history if entry.fact.type == REDRIVEN]
    assert [entry.disposition for entry in redriven] == [Disposition.APPLIED] * 3


async def test_of_two_operators_the_one_whose_event_is_stored_first_decides(broker: Broker) -> None:
    store, other = MemoryCorrelatorStore(), MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator:
        await tell(broker, "o1", HAPPY[:2])
        await give_up(broker, "o1", 2)
        letter = await until(store, 2, is_open(3))
        # what the second operator sees stays as it was before the first one decided
        await other.commit(await other.claim(INCARNATION), FoldedBatch(9, dead_letters=[NewDeadLetter(letter)]))
        async with operating(store, broker) as first, operating(other, broker) as second:
            assert (await first.discard(dead_letter_id="payments-2")).told == 1
            assert (await second.redrive(dead_letter_id="payments-2")).told == 1
        recorded = await correlator.until_saga("o1", lambda saga: saga.history[-1].fact.type == REDRIVEN)
        letter = await until(store, 2, is_closed)
    assert (letter.state, letter.close_actor) == (DeadLetterState.DISCARDED, "bob")
    last = recorded.saga.history[-1]
    assert (last.disposition, last.reason) == (
        (Disposition.LATE, "the dead letter of 'payments' at sequence 2 is not open")
    )


async def test_the_redrive_of_one_that_was_superseded_meanwhile_changes_nothing(broker: Broker) -> None:
    store, before = MemoryCorrelatorStore(), MemoryCorrelatorStore()
    async with correlating(broker, store) as correlator:
        await tell(broker, "o1", HAPPY[:2])
        await give_up(broker, "o1", 2)
        letter = await until(store, 2, is_open(3))
        await before.commit(await before.claim(INCARNATION), FoldedBatch(9, dead_letters=[NewDeadLetter(letter)]))
        await publish(broker, "o1", "DeadLetterSuperseded", about("o1", 2))
        async with operating(before, broker) as operator:
            assert (await operator.redrive(filter="state = OPEN")).told == 1
        recorded = await correlator.until_saga("o1", lambda saga: saga.history[-1].fact.type == REDRIVEN)
        letter = await until(store, 2, is_closed)
    assert (letter.state, letter.close_actor) == (DeadLetterState.SUPERSEDED, "")
    assert recorded.saga.history[-1].disposition is Disposition.LATE


async def test_what_was_closed_or_changed_while_it_was_told_is_passed_over(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    await with_open(store, 3)
    stream = BrokerEventsStream(broker)
    verbs = OperatorVerbs(store, REGISTRY, stream)
    telling = verbs.tell(Decision(REDRIVE, "ada", "repaired", filter="state = OPEN"))
    assert (await anext(telling)).matched == 3
    ends = [closed(2, at_sequence=200_001), closed(3, at_sequence=200_002)]
    again = given_up(3, at_sequence=200_003, attempts=6)
    batch = FoldedBatch(200_003, dead_letters=[again], closed_dead_letters=ends)
    await store.commit(await store.claim(INCARNATION), batch)
    whole = [progress async for progress in telling][-1]
    assert (whole.matched, whole.told, whole.passed_over, whole.dead_letter_id) == (3, 1, 2, "payments-1")
    await stream.stop()
    assert [event.key for event in await stored(broker, REDRIVEN)] == [key_of(1)]


async def test_thousands_are_told_with_their_progress(broker: Broker) -> None:
    store = MemoryCorrelatorStore()
    await with_open(store, 3000)
    async with operating(store, broker) as operator:
        began = asyncio.get_running_loop().time()
        progress = await answers(operator.discarding(filter="participant = payments"))
        seconds = asyncio.get_running_loop().time() - began
    assert (progress[0], progress[-1]) == (
        (Progress(matched=3000), Progress(matched=3000, told=3000, dead_letter_id="payments-3000"))
    )
    told = [one.told for one in progress]
    assert told == sorted(told)
    assert len(progress) <= seconds * 10 + 2
    assert len(await stored(broker, DISCARDED)) == 3000


async def test_without_a_broker_the_answer_is_unavailable_and_calling_again_tells_the_rest(
    provisioned: BrokerUnderTest,
) -> None:
    store = MemoryCorrelatorStore()
    await with_open(store, 4000)
    broker = await connect(provisioned.url)
    async with operating(store, broker) as operator:
        call = aiter(operator.redriving(filter="state = OPEN"))
        async with asyncio.timeout(ANSWER_SECONDS):
            while (told := (await anext(call)).progress.told) == 0:
                pass
        provisioned.kill()
        problem = await refused(call)
        assert (problem.code, problem.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE")
        assert problem.metadata["matched"] == "4000"
        assert 0 < told <= int(problem.metadata["told"]) < 4000
        assert "Call it again" in problem.message
        problem = await refused(operator.discarding(dead_letter_id="payments-1"))
        assert (problem.code, problem.metadata["told"]) == (grpc.StatusCode.UNAVAILABLE, "0")
        provisioned.start()
        connected = asyncio.Event()
        broker.on_change(lambda is_connected: connected.set() if is_connected else None)
        async with asyncio.timeout(ANSWER_SECONDS):
            await connected.wait()
        assert len(await stored(broker, REDRIVEN)) >= told
        assert (await operator.redrive(filter="state = OPEN")).told == 4000
        keys = [event.key for event in await stored(broker, REDRIVEN)]
        assert sorted(keys) == sorted(map(key_of, range(1, 4001)))
    await broker.close()


async def test_what_can_be_read_by_now_is_redriven_and_the_rest_is_not(broker: Broker, tmp_path: Path) -> None:
    """A correlator that was deployed before the descriptor set had a type, and one with newer descriptors."""
    store = SqlCorrelatorStore(Database(f"sqlite:///{tmp_path}/correlator.db"))
    older = Registry({name: one for name, one in REGISTRY.types.items() if name != "inventory.v1.ItemsReserved"})
    async with correlating(broker, store, registry=older) as correlator:
        for key in ("o1", "o2"):
            await tell(broker, key, HAPPY[:1])
        await tell(broker, "o1", [("orders.v1.OrderCreated", {"customerId": 7})])
        for key in ("o1", "o2"):
            await tell(broker, key, HAPPY[1:])
            await correlator.until_saga(key, lambda saga: saga.history[-1].fact.type == HAPPY[-1][0])
    assert len(await stored(broker, "choreography.v1.EventUnreadable")) == 3
    async with correlating(broker, store) as correlator, operating(store, broker) as operator:
        letters = (await store.list_dead_letters(DeadLetterQuery())).dead_letters
        (garbage,) = [letter for letter in letters if letter.reason is Reason.UNDECODABLE]
        problem = await refused(operator.redriving(dead_letter_id=garbage.id))
        assert (problem.code, problem.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "DEAD_LETTER_UNREADABLE")
        assert "still can't be read: UNDECODABLE: the body is not a ProtoJSON orders.v1.OrderCreated" in problem.message
        whole = await operator.redrive(filter="participant = correlator")
        assert (whole.matched, whole.told, whole.passed_over) == (3, 2, 1)
        for key in ("o1", "o2"):
            await correlator.until(key, Status.COMPLETED)
        assert await operator.discard(dead_letter_id=garbage.id) == Progress(
            matched=1, told=1, dead_letter_id=garbage.id
        )
        await until(store, garbage.sequence, is_closed, participant="correlator")
    rebuilt = MemoryCorrelatorStore()
    async with correlating(broker, rebuilt) as correlator:
        await correlator.problems.until_well()
        for key in ("o1", "o2"):
            assert await rebuilt.get_sagas(key) == await store.get_sagas(key)
        again = (await rebuilt.list_dead_letters(DeadLetterQuery())).dead_letters
        assert again == (await store.list_dead_letters(DeadLetterQuery())).dead_letters
    await store.close()


async def test_what_no_one_can_read_is_discarded_under_its_key_or_that_of_its_partition(broker: Broker) -> None:
    """That of the partition also where the event was stored in another one than its key's."""
    store = MemoryCorrelatorStore()
    letters = [of_saga(dead_letter(1, key="ord-1").dead_letter, "ord-1"), dead_letter(2).dead_letter]
    letters.append(replace(letters[0], sequence=3, subject="events.9.orders.v1.OrderCreated"))
    batch = FoldedBatch(3, dead_letters=[NewDeadLetter(letter) for letter in letters])
    await store.commit(await store.claim(INCARNATION), batch)
    async with operating(store, broker) as operator:
        assert (await operator.discard(filter="participant = correlator")).told == 3
    events = await stored(broker, DISCARDED)
    assert {event.key for event in events} == {"partition-3-1", "ord-1", partition_key(9)}
    assert {event.partition for event in events} == {3, partition_of("ord-1"), 9}

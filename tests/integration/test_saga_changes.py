"""Who watches a saga is woken whichever process has folded its event, over a real broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from choreography.v1 import saga_pb2, saga_service_pb2, saga_service_pb2_grpc
from farandole.broker.connection import Broker
from farandole.broker.nudges import Nudges
from farandole.correlator.changes import CHANGES_SUBJECT, ChangeWatch, SagaChanges
from farandole.correlator.memory_store import MemoryCorrelatorStore
from farandole.correlator.saga_service import SagaService
from farandole.rpc import HealthMonitor, Rpc, serve
from farandole.testing.brokers import BrokerUnderTest, nats_py
from tests.integration.correlators import HAPPY, REGISTRY, correlating, tell
from tests.integration.test_correlator_services import Standings


@asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[SagaChanges]:
    """What a process hears of changes, once the broker sends it there."""
    changes = SagaChanges(Nudges(broker, CHANGES_SUBJECT))
    task = asyncio.create_task(changes.listen())
    with changes.watch("probe") as watch:
        async with asyncio.timeout(10):
            while not await is_woken(watch, within=0.02):
                await broker.client.publish(CHANGES_SUBJECT, b"somebody\nprobe")
    yield changes
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def is_woken(watch: ChangeWatch, *, within: float = 10.0) -> bool:
    """Whether a watcher is woken; what came for another one is passed over."""
    began = asyncio.get_running_loop().time()
    await watch.wait(within)
    return asyncio.get_running_loop().time() - began < within


async def test_a_change_wakes_who_watches_it_in_every_process(broker: Broker) -> None:
    async with listening(broker) as here, listening(broker) as there:
        with here.watch("o1") as own, there.watch("o1") as theirs, there.watch("o2") as another:
            await here.changed(["o1"])
            assert await is_woken(own)
            assert await is_woken(theirs)
            assert not await is_woken(another, within=0.05)
            assert not await is_woken(own, within=0.05), "not once more by its own nudge"


async def test_as_many_changes_as_a_batch_may_have_are_told(broker: Broker) -> None:
    keys = [f"{number:0>128}" for number in range(10_000)]
    async with listening(broker) as here, listening(broker) as there:
        with there.watch(keys[0]) as first, there.watch(keys[-1]) as last:
            await here.changed(keys)
            assert await is_woken(first)
            assert await is_woken(last)


async def test_a_change_is_no_trouble_without_a_broker(broker: Broker, provisioned: BrokerUnderTest) -> None:
    changes = SagaChanges(Nudges(broker, CHANGES_SUBJECT))
    await broker.connected()
    provisioned.kill()
    with changes.watch("o1") as watch:
        await changes.changed(["o1"])
        assert await is_woken(watch)


@pytest.mark.parametrize("body", [b"", b"\xff\n\xff", b"somebody", b"\n\n\n"])
async def test_what_is_no_nudge_wakes_nobody(broker: Broker, body: bytes) -> None:
    async with listening(broker) as changes:
        with changes.watch("o1") as watch:
            await broker.client.publish(CHANGES_SUBJECT, body)
            await nats_py(broker).flush()
            assert not await is_woken(watch, within=0.05)
            await broker.client.publish(CHANGES_SUBJECT, b"somebody\no1")
            assert await is_woken(watch)


async def test_a_watch_ends_at_a_replica_that_folds_nothing(broker: Broker) -> None:
    """Nothing but a nudge ends its waiting here."""
    store = MemoryCorrelatorStore()
    async with listening(broker) as changes, correlating(broker, store, nudges=Nudges(broker, CHANGES_SUBJECT)):
        service = SagaService(store, REGISTRY, changes, Standings(), reread_seconds=3600)
        rpc = Rpc(
            saga_service_pb2.DESCRIPTOR.services_by_name["SagaService"],
            saga_service_pb2_grpc.add_SagaServiceServicer_to_server,
            service,
        )
        async with (
            serve("127.0.0.1:0", [rpc], HealthMonitor(), grace_seconds=0.1) as server,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            stub = saga_service_pb2_grpc.SagaServiceStub(channel)
            responses = stub.WatchSaga(saga_service_pb2.WatchSagaRequest(saga_id="o1"))
            watching = asyncio.create_task(statuses(responses))
            async with asyncio.timeout(20):
                while not changes.watched:  # noqa: ASYNC110 - the server's state, which tells nobody
                    await asyncio.sleep(0.01)
                await tell(broker, "o1", HAPPY)
                assert (await watching)[-1] == saga_pb2.SAGA_STATUS_COMPLETED


async def statuses(stream: Any) -> list[int]:
    return [response.saga.status async for response in stream]

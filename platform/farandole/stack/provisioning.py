"""Making the streams on a broker, from a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from farandole.broker.connection import Broker
from farandole.broker.provisioning import Survey, survey
from farandole.broker.streams import Provisioned, provision
from farandole.errors import BrokerUnavailableError
from farandole.settings import Settings
from farandole.stack.ports import CORRELATOR_PORT

CONNECT_TIMEOUT_SECONDS = 3.0
LEADER_SECONDS = 30.0
"""A cluster that has lost a leader elects another within about ten seconds; on a busy machine, and where that was the
leader of everything, it takes longer."""

_RETRY_SECONDS = 0.25

T = TypeVar("T")


def provision_broker(nats_url: str, *, replicas: int = 1) -> list[Provisioned]:
    """Makes the streams that do not exist yet; says for each what it found or did.

    Waits for a cluster's leaders. Raises `StreamDriftError` where one exists that is not as Farandole needs it,
    `BrokerUnavailableError` where the broker does not answer in time.
    """
    return asyncio.run(with_leader(_settings(nats_url), lambda broker: provision(broker, replicas=replicas)))


def survey_broker(nats_url: str, *, replicas: int | None, apply: bool) -> Survey:
    """See `survey`. Waits for a cluster's leaders, as `provision_broker` does."""
    surveyed = with_leader(_settings(nats_url), lambda broker: survey(broker, replicas=replicas, apply=apply))
    return asyncio.run(surveyed)


def _settings(nats_url: str) -> Settings:
    return Settings.load("provision", grpc_port=CORRELATOR_PORT, nats_url=nats_url)


async def with_leader(settings: Settings, work: Callable[[Broker], Awaitable[T]]) -> T:
    """The result of `work` over a connection of its own. It is done again while a cluster may be electing a leader.

    Raises what `work` does; `BrokerUnavailableError` only after a while, or at once where no broker can be reached.
    """
    broker = await connect(settings)
    until = asyncio.get_running_loop().time() + LEADER_SECONDS
    try:
        while True:
            try:
                return await work(broker)
            except BrokerUnavailableError:
                if asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(_RETRY_SECONDS)
    finally:
        await broker.close()


async def connect(settings: Settings) -> Broker:
    """A connection that stands. Raises `BrokerUnavailableError` where there is none within a few seconds."""
    broker = Broker(settings)
    broker.start()
    try:
        await asyncio.wait_for(broker.connected(), CONNECT_TIMEOUT_SECONDS)
    except TimeoutError:
        problem = broker.problem
        await broker.close()
        raise BrokerUnavailableError(problem or f"the broker at {settings.nats_url} does not answer") from None
    return broker

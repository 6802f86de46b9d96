"""Making the streams on a broker, from a command."""

from __future__ import annotations

import asyncio

from farandole.broker.connection import Broker
from farandole.broker.provisioning import Survey, survey
from farandole.broker.streams import Provisioned, provision
from farandole.errors import BrokerUnavailableError
from farandole.settings import Settings
from farandole.stack.ports import CORRELATOR_PORT

CONNECT_TIMEOUT_SECONDS = 3.0


def provision_broker(nats_url: str, *, replicas: int = 1) -> list[Provisioned]:
    """Makes the streams that do not exist yet; says for each what it found or did.

    Raises `StreamDriftError` where one exists that is not as Farandole needs it, `BrokerUnavailableError` where the
    broker does not answer in time.
    """
    settings = Settings.load("provision", grpc_port=CORRELATOR_PORT, nats_url=nats_url)
    return asyncio.run(_provision(settings, replicas))


async def _provision(settings: Settings, replicas: int) -> list[Provisioned]:
    broker = await connect(settings)
    try:
        return await provision(broker, replicas=replicas)
    finally:
        await broker.close()


def survey_broker(nats_url: str, *, replicas: int | None, apply: bool) -> Survey:
    """See `survey`; `BrokerUnavailableError` where the broker does not answer in time."""
    return asyncio.run(
        _survey(Settings.load("provision", grpc_port=CORRELATOR_PORT, nats_url=nats_url), replicas, apply)
    )


async def _survey(settings: Settings, replicas: int | None, apply: bool) -> Survey:
    broker = await connect(settings)
    try:
        return await survey(broker, replicas=replicas, apply=apply)
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

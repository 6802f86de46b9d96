"""What commands work on that look at the correlator's own store and stream, and not at its answers."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farandole.broker.connection import Broker
from farandole.correlator.main import read_registry
from farandole.correlator.plugins_in_use import make_store
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.sql_store import SqlCorrelatorStore
from farandole.correlator.store import CorrelatorStore
from farandole.errors import ConfigurationError, Fault
from farandole.lifecycle import CORRELATOR
from farandole.registry import Registry
from farandole.stack.addresses import default_nats_url, stack_here
from farandole.stack.ports import CORRELATOR_PORT
from farandole.stack.provisioning import connect

_SQLITE = "sqlite:///"


@dataclass(frozen=True, slots=True)
class LiveCorrelator:
    """A running correlator, seen from beside it."""

    store: CorrelatorStore
    """To be read: the correlator goes on writing."""
    broker: Broker
    registry: Registry


@asynccontextmanager
async def live_correlator(database: str | None) -> AsyncIterator[LiveCorrelator]:
    """The correlator's store, its broker, and its events.

    Raises `ConfigurationError` where a setting is wrong or there is no such database, `PluginError` where its store
    can't be loaded, and what connecting does.
    """
    url = database or os.environ.get("FARANDOLE_DATABASE_URL") or _stacks_database()
    settings = _settings() if url is None else _settings(database_url=url)
    registry = read_registry(settings.descriptors)
    _refuse_missing(settings.database_url)
    store = await make_store(settings.database_url, application_name="farandole")
    try:
        if not isinstance(store, SqlCorrelatorStore):  # which would bring the tables up to date
            await store.open()
        async with connected_broker() as broker:
            yield LiveCorrelator(store, broker, registry)
    finally:
        await store.close()


@asynccontextmanager
async def connected_broker(nats_url: str | None = None) -> AsyncIterator[Broker]:
    """A broker: without a URL the one that the command line means. Raises `BrokerUnavailableError`."""
    given = {} if nats_url is None else {"nats_url": nats_url}
    broker = await connect(_settings(database_password_file=None, **given))  # that of databases which others name
    try:
        yield broker
    finally:
        await broker.close()


def event_registry() -> Registry:
    """The events of the descriptor set. Raises `ConfigurationError`."""
    return read_registry(_settings(database_password_file=None).descriptors)


def _settings(**given: Any) -> CorrelatorSettings:  # noqa: ANN401 - pydantic's own fields
    if "nats_url" not in given:
        given["nats_url"] = default_nats_url(os.environ, Path.cwd())
    return CorrelatorSettings.load(CORRELATOR, grpc_port=CORRELATOR_PORT, **given)


def _stacks_database() -> str | None:
    """That of the embedded stack whose file is here or above; None where there is none, or it has no correlator. What
    PostgreSQL needs to let this process in is set for it."""
    plan = stack_here(os.environ, Path.cwd())
    if plan is None:
        return None
    if plan.postgres is not None:
        os.environ["PGPASSFILE"] = str(plan.postgres.passwords)
    return next((replica.environment["FARANDOLE_DATABASE_URL"] for replica in plan.replicas(CORRELATOR)), None)


def _refuse_missing(url: str) -> None:
    """SQLite would make a file that is not there."""
    path = url.removeprefix(_SQLITE)
    if path != url and not Path(path).exists():
        reason = f"there is no database {path}; start the correlator, or name its database by --database"
        raise ConfigurationError([Fault("FARANDOLE_DATABASE_URL", reason)])

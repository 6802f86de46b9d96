"""The plug-ins that a correlator's settings name: loaded, begun, and stopped together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from farandole.broker.connection import Broker
from farandole.correlator.deadline_action_runner import DeadlineActionRunner
from farandole.correlator.observer_runner import ObserverRunner
from farandole.correlator.observers import Transition
from farandole.correlator.plugin_guard import Standing, load
from farandole.correlator.settings import CorrelatorSettings
from farandole.correlator.store import CorrelatorStore
from farandole.correlator.stores import StoreFactory, scheme_of
from farandole.errors import ConfigurationError, Fault, PluginError
from farandole.plugins import Kind, Plugin, find
from farandole.registry import Registry
from farandole.settings import ENV_PREFIX

T = TypeVar("T")

_DATABASE_URL = f"{ENV_PREFIX}DATABASE_URL"
_DEADLINE_ACTIONS = f"{ENV_PREFIX}DEADLINE_ACTIONS"
_OBSERVERS = f"{ENV_PREFIX}OBSERVERS"


@dataclass(frozen=True, slots=True)
class PluginsInUse:
    """The plug-ins of one correlator."""

    store_plugin: Plugin
    store: CorrelatorStore
    """Not opened yet."""
    observers: Sequence[ObserverRunner] = ()
    deadline_actions: Sequence[DeadlineActionRunner] = ()

    @property
    def standings(self) -> list[Standing]:
        """How each of them does: the store first, and the others in the order of the settings."""
        return [
            Standing(self.store_plugin),
            *(action.standing for action in self.deadline_actions),
            *(observer.standing for observer in self.observers),
        ]

    def observe(self, transitions: Sequence[Transition]) -> None:
        """Tells every observer of transitions that are committed. Never waits and never raises."""
        for observer in self.observers:
            observer.tell(transitions)

    def beside(self, broker: Broker, registry: Registry) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """What is to run beside the worker: the deadline actions."""
        return [partial(action.run, broker, registry) for action in self.deadline_actions]

    async def stop(self) -> None:
        """Closes all but the store."""
        await _stop(self.observers, self.deadline_actions)


async def use_plugins(settings: CorrelatorSettings, *, application_name: str) -> PluginsInUse:
    """Loads what the settings name, and begins it. `application_name` goes to the store, see `StoreFactory`.

    Raises `ConfigurationError` that lists every plug-in that can't be loaded, and every setting of theirs that is
    wrong. What else goes wrong as one begins is its own trouble, told by its standing.
    """
    store_plugin = find(Kind.STORE, scheme_of(settings.database_url))
    faults: list[Fault] = []
    tries = settings.deadline_action_tries
    async with asyncio.TaskGroup() as tasks:
        making = make_store(settings.database_url, application_name=application_name)
        storing = tasks.create_task(_unless_faulty(_DATABASE_URL, making, faults))
        acting = [
            tasks.create_task(_unless_faulty(_DEADLINE_ACTIONS, _deadline_action(name, tries), faults))
            for name in settings.deadline_actions
        ]
        observing = [
            tasks.create_task(_unless_faulty(_OBSERVERS, _observer(name), faults)) for name in settings.observers
        ]
    store = storing.result()
    actions = [action for task in acting if (action := task.result()) is not None]
    observers = [observer for task in observing if (observer := task.result()) is not None]
    if store is None or faults:
        await _stop(observers, actions)
        raise ConfigurationError(faults)
    return PluginsInUse(store_plugin, store, observers, actions)


async def _stop(observers: Sequence[ObserverRunner], actions: Sequence[DeadlineActionRunner]) -> None:
    await asyncio.gather(*(observer.stop() for observer in observers), *(action.stop() for action in actions))


async def _unless_faulty(variable: str, work: Awaitable[T], faults: list[Fault]) -> T | None:
    """What comes of it; None where an operator has something to put right first, which is added to `faults`."""
    try:
        return await work
    except ConfigurationError as error:
        faults += error.faults
    except PluginError as error:
        faults.append(Fault(variable, str(error)))
    return None


async def make_store(url: str, *, application_name: str) -> CorrelatorStore:
    """The store that the scheme of a URL names, see `StoreFactory`: it is not opened yet.

    Raises `PluginError` where there is no such one, or it can't be loaded, and `ConfigurationError` where the URL is
    wrong.
    """
    factory: StoreFactory = await load(find(Kind.STORE, scheme_of(url)))
    try:
        return factory(url, application_name=application_name)
    except ValueError as error:
        raise ConfigurationError([Fault(_DATABASE_URL, str(error))]) from None


async def _deadline_action(name: str, tries: int) -> DeadlineActionRunner:
    plugin = find(Kind.DEADLINE_ACTION, name)
    runner = DeadlineActionRunner(plugin, await load(plugin), tries=tries)
    await runner.begin()
    return runner


async def _observer(name: str) -> ObserverRunner:
    plugin = find(Kind.OBSERVER, name)
    runner = ObserverRunner(plugin, await load(plugin))
    await runner.begin()
    return runner

"""What a correlator is told from outside, besides what every process is: its store, and its other plug-ins."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_settings import NoDecode

from farandole.correlator.stores import scheme_of
from farandole.errors import PluginError
from farandole.plugins import Kind, find, names
from farandole.settings import Settings, sql_database_url

_SQL = frozenset({"sqlite", "postgresql"})


def _store_url(url: str, info: ValidationInfo) -> str:
    _installed(Kind.STORE, (scheme_of(url),))
    return sql_database_url(url, info) if scheme_of(url) in _SQL else url


def _installed(kind: Kind, wanted: tuple[str, ...]) -> tuple[str, ...]:
    faults: list[str] = []
    for name in wanted:
        try:
            find(kind, name)
        except PluginError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("; ".join(faults))
    return wanted


class CorrelatorSettings(Settings):
    """The settings of a correlator. Every plug-in that they name is installed; it has not been loaded."""

    database_url: Annotated[str, AfterValidator(_store_url)] = Field(
        default_factory=lambda known: f"sqlite:///.farandole/data/{known['service']}.db",
        repr=False,  # it may hold a password
        validate_default=True,
    )
    """Its scheme names the store; what follows is the store's own."""
    deadline_actions: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(names), AfterValidator(partial(_installed, Kind.DEADLINE_ACTION))
    ] = ()
    """What is done besides when a deadline has passed, by name, separated by commas."""
    deadline_action_tries: Annotated[int, Field(ge=1, le=1000)] = 12
    """How often an action is tried on one deadline before it is given up on; a try that a stop or a crash cut short
    counts."""
    observers: Annotated[
        tuple[str, ...], NoDecode, BeforeValidator(names), AfterValidator(partial(_installed, Kind.OBSERVER))
    ] = ()
    """Who is told of each change of a saga, by name, separated by commas."""

"""Plug-ins: what installed packages offer under the entry-point groups of Farandole, found by name.

What ships with Farandole is found in the same way: its own distribution has entry points too. Finding imports nothing;
`Plugin.load` does.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from farandole.errors import PluginError
from farandole.nearest import did_you_mean


class Kind(enum.Enum):
    """What a plug-in is for. The value is its entry-point group."""

    STORE = "farandole.stores"
    """Where a correlator keeps what it knows, by the scheme of its database's URL: `farandole.correlator.stores`."""
    DEADLINE_ACTION = "farandole.deadline_actions"
    """What is done besides when a deadline has passed: `farandole.correlator.deadline_actions`."""
    OBSERVER = "farandole.observers"
    """Who is told of each change of a saga: `farandole.correlator.observers`."""

    @property
    def word(self) -> str:
        """As it is called in messages: `deadline action`."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, slots=True)
class Plugin:
    """One thing that an installed package offers."""

    kind: Kind
    name: str
    package: str
    """The distribution that brings it."""
    version: str
    """Of the distribution."""
    entry_point: EntryPoint

    def load(self) -> Any:  # noqa: ANN401 - what the group's port says
        """Imports what the entry point names: a factory.

        Raises `PluginError` where that fails, whatever it is that the package's code raises.
        """
        try:
            factory = self.entry_point.load()
        except BaseException as error:  # somebody else's code, which may raise SystemExit too
            raise PluginError(f"{self} can't be loaded from {self.entry_point.value}: {described(error)}") from error
        if not callable(factory):
            raise PluginError(f"{self} is no factory: {self.entry_point.value} can't be called")
        return factory

    def __str__(self) -> str:
        return f"the {self.kind.word} {self.name} of {self.package} {self.version}"


def installed(kind: Kind) -> list[Plugin]:
    """What is installed of a kind, by name; a name that two packages use is there twice."""
    found = [
        Plugin(
            kind,
            entry_point.name,
            entry_point.dist.name if entry_point.dist else "",
            entry_point.dist.version if entry_point.dist else "",
            entry_point,
        )
        for entry_point in entry_points(group=kind.value)
    ]
    return sorted(set(found), key=lambda plugin: (plugin.name, plugin.package))


def find(kind: Kind, name: str) -> Plugin:
    """The one plug-in of a kind with a name. Raises `PluginError` that says what there is, where there is no such one.

    Raises it too where two packages offer that name: which one is meant can't be known.
    """
    known = installed(kind)
    found = [plugin for plugin in known if plugin.name == name]
    if not found:
        raise PluginError(
            f"there is no {kind.word} {name!r}{did_you_mean(name, [plugin.name for plugin in known])}; installed: "
            f"{', '.join(plugin.name for plugin in known) or 'none'}"
        )
    if len(found) > 1:
        packages = " and ".join(plugin.package for plugin in found)
        raise PluginError(f"{packages} both offer the {kind.word} {name!r}; uninstall one of them")
    return found[0]


def described(error: BaseException) -> str:
    """An error of somebody else's code in one line: its type and what it says."""
    said = " ".join(str(error).split())[:_LONGEST_TEXT]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


_LONGEST_TEXT = 300


def names(text: str | Sequence[str]) -> tuple[str, ...]:
    """The names in a setting such as `webhook, audit`, each once, in its order."""
    given = text.split(",") if isinstance(text, str) else text
    return tuple(dict.fromkeys(name.strip() for name in given if name.strip()))

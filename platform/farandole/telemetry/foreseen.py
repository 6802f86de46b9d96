"""What a process knows of its labels before anything has happened. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

Place = tuple[str, str, str]
"""A part of a step: definition, step, direction."""


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The values that labels will have. Each series of them is shown at 0 from the start: of one that begins with a
    number, Prometheus can't tell how much it has grown.
    """

    event_types: Collection[str] = ()
    """Those that labels may name; all others are `unknown`."""
    states: Collection[str] = ()
    """In which the process puts events off."""
    parts: Collection[Place] = ()
    """Of steps, whose handlers it runs."""
    definitions: Collection[str] = ()
    """Of sagas that it records. Others may be activated later on."""

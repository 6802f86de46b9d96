"""Which values the labels of metrics can have, as the code and the sample services would have them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from farandole.correlator.main import read_registry
from farandole.definition_files import load_definitions
from farandole.envelope import Reason
from farandole.lanes import Lanes
from farandole.participant.barrier import Direction
from farandole.participant.queue_table import QueueState
from farandole.partitions import PARTITIONS
from farandole.process import CHECKS
from farandole.saga import Disposition, Health, Status
from farandole.stack.stack_file import ServiceEntry, read_stack_file
from farandole.telemetry import catalogue
from farandole.telemetry.catalogue import Metric, Outcome, PublishFailure

ROOT = Path(__file__).resolve().parents[2]

_REGISTRY = read_registry(ROOT / "generated" / "descriptors.binpb")
_DEFINITIONS = load_definitions(ROOT / "services" / "correlator" / "sagas", _REGISTRY)
_SERVICES = {one.name for one in read_stack_file(ROOT / "farandole.yaml").services if isinstance(one, ServiceEntry)}
_ENDED, _OPEN = ({one.name for one in Status if one.is_terminal is is_terminal} for is_terminal in (True, False))

_OF_ANY: Mapping[str, Collection[str]] = {
    "service": _SERVICES,
    "participant": _SERVICES,
    "type": {*_REGISTRY.types, catalogue.UNKNOWN},
    "definition": {definition.name for definition in _DEFINITIONS},
    "step": {step.name for definition in _DEFINITIONS for step in definition.steps},
    "direction": set(Direction),
    "disposition": {disposition.name for disposition in Disposition},
    "outcome": set(Outcome),
    "check": set(CHECKS),
    "consumer": {
        Lanes(count).durable(service, lane)
        for service in _SERVICES
        for count in range(1, PARTITIONS + 1)
        for lane in range(count)
    },
    "health": {health.name for health in Health},
}
"""Of labels that have the same values wherever they stand."""
_OF_ONE: Mapping[tuple[Metric, str], Collection[str]] = {
    (catalogue.EVENTS_PUT_OFF, "state"): {state.name for state in QueueState},
    (catalogue.QUEUED_EVENTS, "state"): {state.name for state in QueueState},
    (catalogue.PUBLISH_FAILURES, "reason"): set(PublishFailure),
    (catalogue.DEAD_LETTERS_OPEN, "reason"): {reason.name for reason in Reason},
    (catalogue.SAGA_DURATION, "status"): _ENDED,
    (catalogue.OPEN_SAGAS, "status"): _OPEN,
}


def strange(metric: Metric, label: str, value: str) -> bool:
    """Whether a label of a metric never has this value."""
    if label == "dependency":  # what handlers call it
        return False
    return value not in (_OF_ONE.get((metric, label)) or _OF_ANY[label])

"""One tree of errors. Adapters translate what their libraries raise; no library's exception leaks through.

FarandoleError
├── ConfigurationError        a setting, a stack file or a descriptor set is wrong; lists every fault
├── DefinitionError           a saga definition is refused; lists every fault with file and line
├── ContractError             a handler's annotations, or what it returned, break the participant's contract
├── InvalidEventError         an event can't be published: its type, a rule, its key or its size
├── BrokerError               the broker refused or did not answer
│   ├── BrokerUnavailableError    not connected, or no answer in time; trying again may help
│   ├── StreamMissingError        a stream does not exist
│   ├── StreamDriftError          a stream exists with other settings than Farandole needs
│   ├── StreamIncarnationError    the stream is not the one that a stored position points into
│   └── StreamPrunedError         events are gone that a reader has not taken in
├── StoreError                a database refused or did not answer
│   ├── StoreUnavailableError     locked, read-only, full or unreachable; trying again may help
│   ├── FencedError               another process took over what this one owned
│   │   └── ReaderReplacedError       another process reads the consumer that this one read
│   ├── LanesDifferError          replicas of one service have different numbers of lanes
│   └── SnapshotError             a snapshot or a backup is missing, damaged, or of another format
├── PluginError               a plug-in is not installed, can't be loaded, or raised
├── StackError                the embedded stack, or a service in it, can't be started, stopped or reached
└── QueryError                a request can't be answered
    ├── InvalidArgumentError      names the field
    ├── NotFoundError
    ├── AmbiguousSagaError        several definitions have a saga under the key
    ├── PreconditionError         as things stand it can't be done
    ├── UnfinishedError           a part was done before the broker went away; to ask again is safe
    └── AlreadyExistsError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


class FarandoleError(Exception):
    """The root: everything that this library raises on purpose."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in something a person wrote: where it stands, what is wrong, and the remedy in it."""

    where: str
    """`FARANDOLE_NATS_URL`, or `sagas/order.yaml:12`."""
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class FaultsError(FarandoleError):
    """Something a person wrote is wrong; every fault is reported at once."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


class ConfigurationError(FaultsError):
    """A setting, a stack file or a descriptor set is wrong."""


class DefinitionError(FaultsError):
    """A saga definition is refused."""


class ContractError(FarandoleError):
    """A handler's annotations, or what it returned, break the participant's contract."""


class InvalidEventError(FarandoleError):
    """An event can't be published: its type, a rule, its key or its size."""


_WRONG_LAST_SEQUENCE = frozenset({10071, 10164})
"""JetStream's codes for a compare-and-set that came too late, told with the sequence and without it."""


class BrokerError(FarandoleError):
    """The broker refused; `code` is its JetStream error code, 0 where it gave none."""

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code

    @property
    def is_conflict(self) -> bool:
        """Whether a compare-and-set came too late: another message was stored first, and nothing is wrong."""
        return self.code in _WRONG_LAST_SEQUENCE


class BrokerUnavailableError(BrokerError):
    """Not connected, or no answer in time."""


class StreamMissingError(BrokerError):
    """A stream does not exist; `farandole provision` makes it."""


class StreamDriftError(BrokerError):
    """A stream exists with other settings than Farandole needs."""


class StreamIncarnationError(BrokerError):
    """The stream is not the one that a stored position points into: it was deleted and made again, or restored."""


class StreamPrunedError(BrokerError):
    """Events were pruned from the stream that a reader has not taken in."""


class StoreError(FarandoleError):
    """A database refused."""


class StoreUnavailableError(StoreError):
    """A database is locked, read-only, full or unreachable."""


class FencedError(StoreError):
    """Another process took over what this one owned; this one must stop writing."""


class ReaderReplacedError(FencedError):
    """Another process reads the consumer that this one read, and is to go on."""


class LanesDifferError(StoreError):
    """The replicas of one service have different numbers of lanes."""


class SnapshotError(StoreError):
    """A snapshot or a backup is missing, damaged, or of another format."""


class PluginError(FarandoleError):
    """A plug-in is not installed, can't be loaded, or raised; names it, and what its own error says."""


class StackError(FarandoleError):
    """The embedded stack, or a service in it, can't be started, stopped or reached."""


class QueryError(FarandoleError):
    """A request can't be answered; `reason` and `metadata` go into `google.rpc.ErrorInfo`."""

    reason = "QUERY_FAILED"

    def __init__(self, message: str, *, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.metadata = dict(metadata or {})


class InvalidArgumentError(QueryError):
    """A field of the request is wrong."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", metadata={"field": field})
        self.field = field
        self.description = message


class NotFoundError(QueryError):
    """What was asked for does not exist."""

    reason = "NOT_FOUND"

    def __init__(self, message: str, *, reason: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.reason = reason


class AmbiguousSagaError(QueryError):
    """Several definitions have a saga under the key and the request names none."""

    reason = "SAGA_AMBIGUOUS"


class PreconditionError(QueryError):
    """As things stand it can't be done; asking again changes nothing."""

    def __init__(self, message: str, *, reason: str, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, metadata=metadata)
        self.reason = reason


class UnfinishedError(QueryError):
    """A part of what was asked for was done before the broker went away. To ask again is safe."""

    reason = "BROKER_UNAVAILABLE"


class AlreadyExistsError(QueryError):
    """What should be made exists with other content."""

    reason = "ALREADY_EXISTS"

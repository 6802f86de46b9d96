"""The port: what is told, by whom and when. Nobody who tells anything waits for it, and none of it ever fails."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, Protocol

from farandole.envelope import Event, Publication, Unreadable
from farandole.errors import BrokerError
from farandole.saga import Disposition, Saga
from farandole.telemetry.foreseen import Place
from farandole.telemetry.readings import Source

Guard = Callable[[Any, Any, str], AbstractAsyncContextManager[None]]
"""As `farandole.rpc.guarding.Guard`: makes the context in which one call of a remote procedure runs."""


class Account(Protocol):
    """What one transaction did with events. It counts once `settled`; of one that was rolled back nothing is told.

    An account belongs to one thread at a time.
    """

    def begin(self, event: Event) -> None:
        """The event is being dealt with from now on. What is noted of one that was not begun took no time."""
        ...

    def tried_before(self, event: Event, attempts: int) -> None:
        """The event, which is to be dealt with again, was tried so often."""
        ...

    def running(self, place: Place, given: Sequence[Event]) -> AbstractContextManager[None]:
        """The context in which the handler of a part of a step, (definition, step, direction), runs, given the events
        that the step needs; the last event begun is among them."""
        ...

    def noted(self, event: Event, disposition: Disposition) -> None:
        """The event has been dealt with."""
        ...

    def put_off(
        self, event: Event | Unreadable, state: str, *, attempts: int = 0, error: BaseException | None = None
    ) -> None:
        """The event has not been dealt with: it waits in the queue, in this state, after so many attempts."""
        ...

    def folded(self, event: Event, changed: Mapping[str, Saga]) -> None:
        """The event was folded into these records, by definition; of an unmatched one there may be none."""
        ...

    def changed(self, before: Saga | None, after: Saga) -> None:
        """A saga's record was another one before this transaction."""
        ...

    def traceparent(self, cause: Event | Unreadable | None) -> str:
        """The `traceparent` of an event that is published because of another one; None for one that a remote procedure
        or the passing of time causes. Empty for none."""
        ...

    def settled(self) -> None:
        """The transaction has committed. Nothing is told to this account after it."""
        ...


class Telemetry(Protocol):
    """Where a process tells what it does. To be used from the event loop's thread, but for accounts."""

    def account(self) -> Account:
        """A new account, for a transaction that begins now. May be called in any thread."""
        ...

    def published(self, publication: Publication, seconds: float) -> None:
        """The stream has acknowledged a publication, so long after it was first sent."""
        ...

    def not_published(self, error: BrokerError) -> None:
        """The stream has not acknowledged a publication: it refused, or did not answer."""
        ...

    def beside(self, *sources: Source) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:
        """What is to run beside the work, so that these readings are taken; nothing where nobody wants them."""
        ...

    @property
    def rpc_guard(self) -> Guard | None:
        """In what calls of remote procedures are to run; None where in nothing."""
        ...


class _NoAccount:
    """Nobody wants to know."""

    __slots__ = ()

    def begin(self, event: Event) -> None:
        pass

    def tried_before(self, event: Event, attempts: int) -> None:
        pass

    def running(self, place: Place, given: Sequence[Event]) -> AbstractContextManager[None]:  # noqa: ARG002
        return _NOTHING

    def noted(self, event: Event, disposition: Disposition) -> None:
        pass

    def put_off(
        self, event: Event | Unreadable, state: str, *, attempts: int = 0, error: BaseException | None = None
    ) -> None:
        pass

    def folded(self, event: Event, changed: Mapping[str, Saga]) -> None:
        pass

    def changed(self, before: Saga | None, after: Saga) -> None:
        pass

    def traceparent(self, cause: Event | Unreadable | None) -> str:
        return "" if cause is None else cause.traceparent

    def settled(self) -> None:
        pass


class _NoTelemetry:
    """Nobody wants to know."""

    __slots__ = ()

    rpc_guard: Guard | None = None

    def account(self) -> Account:
        return NO_ACCOUNT

    def published(self, publication: Publication, seconds: float) -> None:
        pass

    def not_published(self, error: BrokerError) -> None:
        pass

    def beside(self, *sources: Source) -> Sequence[Callable[[], Coroutine[Any, Any, None]]]:  # noqa: ARG002
        return ()


_NOTHING = nullcontext()
NO_ACCOUNT: Account = _NoAccount()
"""Tells nobody. What an event causes carries that event's trace on, as it came."""
NO_TELEMETRY: Telemetry = _NoTelemetry()
"""Tells nobody."""

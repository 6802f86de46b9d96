"""How far the sagas of a run have come: a fold of the records that the correlator answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from choreography.v1.saga_pb2 import Saga, SagaStatus, StepStatus

TERMINAL = frozenset(
    {SagaStatus.SAGA_STATUS_COMPLETED, SagaStatus.SAGA_STATUS_COMPENSATED, SagaStatus.SAGA_STATUS_FAILED}
)
UNSEEN = "UNSEEN"
"""Of an order of which the correlator has not seen the event."""
_EXAMPLES = 3


class Progress:
    """The newest record of each saga of a run."""

    def __init__(self, order_ids: Collection[str]) -> None:
        self._order_ids = frozenset(order_ids)
        self._sagas: dict[str, Saga] = {}
        self.latest_update: datetime | None = None
        """Stream time of the newest change seen, in UTC without an offset; records changed before it are known."""

    def see(self, sagas: Iterable[Saga]) -> None:
        """Takes in records; those of other runs, and older ones than are known, change nothing."""
        for saga in sagas:
            update = saga.update_time.ToDatetime()
            if self.latest_update is None or update > self.latest_update:
                self.latest_update = update
            known = self._sagas.get(saga.saga_id)
            if saga.saga_id in self._order_ids and (known is None or known.revision < saga.revision):
                self._sagas[saga.saga_id] = saga

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sagas stand where, by the status's short name."""
        counts = Counter(status_name(saga) for saga in self._sagas.values())
        counts[UNSEEN] = len(self._order_ids) - len(self._sagas)
        return counts

    @property
    def ended(self) -> int:
        """How many sagas are terminal."""
        return sum(saga.status in TERMINAL for saga in self._sagas.values())

    @property
    def is_over(self) -> bool:
        """Whether every saga is terminal."""
        return self.ended == len(self._order_ids)

    def obstacles(self) -> list[str]:
        """What the open sagas wait for, the commonest first: one line each, with a few of the orders."""
        waiting: dict[str, list[str]] = {}
        for order_id in sorted(self._order_ids):
            saga = self._sagas.get(order_id)
            if saga is None:
                waiting.setdefault("the correlator to see their first event", []).append(order_id)
            elif saga.status not in TERMINAL:
                waiting.setdefault(_awaited(saga), []).append(order_id)
        return [
            f"{len(order_ids)} sagas wait for {what}: {', '.join(order_ids[:_EXAMPLES])}"
            + (", …" if len(order_ids) > _EXAMPLES else "")
            for what, order_ids in sorted(waiting.items(), key=lambda item: -len(item[1]))
        ]


def status_name(saga: Saga) -> str:
    """`RUNNING` for `SAGA_STATUS_RUNNING`."""
    return SagaStatus.Name(saga.status).removeprefix("SAGA_STATUS_")


def _awaited(saga: Saga) -> str:
    """What an open saga waits for: the steps under way, and who carries them out."""
    under_way = [
        f"{step.participant} ({'undoing ' if step.status == StepStatus.STEP_STATUS_COMPENSATING else ''}{step.name})"
        for step in saga.steps
        if step.status in {StepStatus.STEP_STATUS_RUNNING, StepStatus.STEP_STATUS_COMPENSATING}
    ]
    return " and ".join(under_way) or "the correlator to close them"

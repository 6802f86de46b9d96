"""How far the sagas of a run have come: a fold of the records that the correlator answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime

from choreography.v1.saga_pb2 import Saga, SagaStatus, StepStatus

TERMINAL = frozenset(
    {SagaStatus.SAGA_STATUS_COMPLETED, SagaStatus.SAGA_STATUS_COMPENSATED, SagaStatus.SAGA_STATUS_FAILED}
)
UNSEEN = "UNSEEN"
"""Of a saga of which the correlator has not seen the first event."""
_EXAMPLES = 3


class Progress:
    """The newest record of each saga of a run."""

    def __init__(self, definitions: Mapping[str, str]) -> None:
        """`definitions` has the sagas to follow, each with the definition of which it is one."""
        self._definitions = definitions
        self._sagas: dict[str, Saga] = {}

    def see(self, sagas: Iterable[Saga]) -> None:
        """Takes in records; those of other runs and definitions, and older ones than are known, change nothing."""
        for saga in sagas:
            known = self._sagas.get(saga.saga_id)
            is_followed = self._definitions.get(saga.saga_id) == saga.definition
            if is_followed and (known is None or known.revision < saga.revision):
                self._sagas[saga.saga_id] = saga

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sagas stand where, by the status's short name."""
        return Counter(map(self.status, self._definitions))

    def status(self, saga_id: str) -> str:
        """Where a saga of this run stands: `RUNNING` for `SAGA_STATUS_RUNNING`, or `UNSEEN`."""
        saga = self._sagas.get(saga_id)
        return SagaStatus.Name(saga.status).removeprefix("SAGA_STATUS_") if saga is not None else UNSEEN

    @property
    def ended(self) -> int:
        """How many sagas are terminal."""
        return sum(saga.status in TERMINAL for saga in self._sagas.values())

    @property
    def oldest_open(self) -> datetime | None:
        """The stream's time before which no record changes any more that is still to end, in UTC without an offset.

        None while some have not been seen. Replicas of the correlator record changes in parallel, so that no later time
        would do: what one has recorded says nothing of what another one is still at.
        """
        updates = [saga.update_time.ToDatetime() for saga in self._sagas.values() if saga.status not in TERMINAL]
        return min(updates, default=None) if len(self._sagas) == len(self._definitions) else None

    @property
    def is_over(self) -> bool:
        """Whether every saga is terminal."""
        return self.ended == len(self._definitions)

    def obstacles(self) -> list[str]:
        """What the open sagas wait for, the commonest first: one line each, with a few of them."""
        waiting: dict[str, list[str]] = {}
        for saga_id in sorted(self._definitions):
            saga = self._sagas.get(saga_id)
            if saga is None:
                waiting.setdefault("the correlator to see their first event", []).append(saga_id)
            elif saga.status not in TERMINAL:
                waiting.setdefault(_awaited(saga), []).append(saga_id)
        return [
            f"{len(saga_ids)} sagas wait for {what}: {', '.join(saga_ids[:_EXAMPLES])}"
            + (", …" if len(saga_ids) > _EXAMPLES else "")
            for what, saga_ids in sorted(waiting.items(), key=lambda item: -len(item[1]))
        ]


def _awaited(saga: Saga) -> str:
    """What an open saga waits for: the steps under way, and who carries them out."""
    under_way = [
        f"{step.participant} ({'undoing ' if step.status == StepStatus.STEP_STATUS_COMPENSATING else ''}{step.name})"
        for step in saga.steps
        if step.status in {StepStatus.STEP_STATUS_RUNNING, StepStatus.STEP_STATUS_COMPENSATING}
    ]
    return " and ".join(under_way) or "the correlator to close them"

"""Farandole: choreographed sagas on NATS JetStream. Independent services, one business transaction, nobody conducts.

    from farandole import Participant, Transaction, step

    def charge(event: ItemsReserved, tx: Transaction) -> PaymentProcessed | PaymentFailed: ...
    def refund(event: ShippingFailed | SagaTimedOut, tx: Transaction) -> PaymentRefunded: ...

    payments = Participant("payments", step("take-payment", charge, undo=refund, saga="order-fulfilment"))

The names below are loaded when they are first used (PEP 562): the command line and the pure core start without gRPC,
a database or a broker.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from farandole.errors import FarandoleError
    from farandole.participant.circuits import Probes
    from farandole.participant.outcomes import DependencyDown, Reject, Snooze
    from farandole.participant.participant import Participant
    from farandole.participant.retries import Retries
    from farandole.participant.step import Step, step
    from farandole.participant.transaction import CommandTransaction, Transaction
    from farandole.service import Runtime, run

__all__ = [
    "CommandTransaction",
    "DependencyDown",
    "FarandoleError",
    "Participant",
    "Probes",
    "Reject",
    "Retries",
    "Runtime",
    "Snooze",
    "Step",
    "Transaction",
    "run",
    "step",
]

_HOMES = {
    "CommandTransaction": "farandole.participant.transaction",
    "DependencyDown": "farandole.participant.outcomes",
    "FarandoleError": "farandole.errors",
    "Participant": "farandole.participant.participant",
    "Probes": "farandole.participant.circuits",
    "Reject": "farandole.participant.outcomes",
    "Retries": "farandole.participant.retries",
    "Runtime": "farandole.service",
    "Snooze": "farandole.participant.outcomes",
    "Step": "farandole.participant.step",
    "Transaction": "farandole.participant.transaction",
    "run": "farandole.service",
    "step": "farandole.participant.step",
}


def __getattr__(name: str) -> object:
    if home := _HOMES.get(name):
        return getattr(import_module(home), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

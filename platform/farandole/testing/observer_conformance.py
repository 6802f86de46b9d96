"""What every `Observer` must do. Subclass the suite and give it your observer:

class TestMyObserver(ObserverConformance):
    @pytest.fixture
    def observer(self, tmp_path):
        return MyObserver(tmp_path / "observed")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from farandole.correlator.observers import Observer, Transition
from farandole.saga import Disposition, Health, Saga, Status
from farandole.testing.store_conformance import at, entry, saga


def life_of(key: str, *, definition: str = "order-fulfilment", beginning: int = 1) -> Iterator[Transition]:
    """The transitions of one saga that is overdue, is undone, and then reopened by a late success."""
    stages = (
        (Status.RUNNING, Health.ON_TIME),
        (Status.RUNNING, Health.OVERDUE),
        (Status.COMPENSATING, Health.ON_TIME),
        (Status.COMPENSATED, Health.ON_TIME),
        (Status.COMPENSATING, Health.STALLED),
        (Status.COMPENSATION_FAILED, Health.QUARANTINED),
    )
    before: Saga | None = None
    for number, (status, health) in enumerate(stages):
        sequence = beginning + number
        event = entry(sequence)
        history = (*(before.history if before else ()), event)
        ended = float(sequence) if status.is_terminal else None
        after = saga(key, definition=definition, status=status, health=health, ended=ended, history=history)
        yield Transition(before, replace(after, update_time=at(sequence)), event.fact)
        before = after


def unmatched(key: str) -> Transition:
    """The transition of an event that waits for its saga's initiating event: a record that has not started."""
    event = entry(1, type_="payments.v1.PaymentProcessed", disposition=Disposition.UNMATCHED)
    return Transition(None, saga(key, started=None, deadline=None, history=(event,)), event.fact)


class ObserverConformance:
    """The suite. The fixture `observer` gives a new observer; the suite closes it.

    What an observer makes of transitions is its own; that it takes whatever it may be told, in the way in which it is
    told, is what is checked.
    """

    def test_takes_a_saga_from_its_beginning_to_its_end_and_on(self, observer: Observer) -> None:
        for transition in life_of("a"):
            observer.observe(transition)
        observer.close()

    def test_takes_sagas_that_alternate_also_under_one_key(self, observer: Observer) -> None:
        lives = zip(
            life_of("a"), life_of("b", beginning=10), life_of("a", definition="loyalty", beginning=20), strict=True
        )
        for transitions in lives:
            for transition in transitions:
                observer.observe(transition)
        observer.close()

    def test_takes_a_record_that_has_not_started(self, observer: Observer) -> None:
        observer.observe(unmatched("a"))
        observer.close()

    def test_takes_what_comes_behind_something_that_it_missed(self, observer: Observer) -> None:
        """A queue that was full, or a crash: then `before` is not what the observer saw last."""
        first, _, _, last, *_ = life_of("a")
        observer.observe(first)
        observer.observe(last)
        observer.close()

    def test_takes_everything_again(self, observer: Observer) -> None:
        """As a correlator tells it that folds the stream anew."""
        for _ in range(2):
            for transition in life_of("a"):
                observer.observe(transition)
        observer.close()

    def test_takes_keys_of_every_character_and_length(self, observer: Observer) -> None:
        for key in ("-", "_", "A-z_0", "k" * 128):
            for transition in life_of(key):
                observer.observe(transition)
        observer.close()

    def test_closes_though_it_was_told_nothing(self, observer: Observer) -> None:
        observer.close()

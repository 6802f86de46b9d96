"""What ships for tests: the conformance suites of Farandole's ports. Needs pytest and pytest-asyncio."""

import pytest

pytest.register_assert_rewrite(
    "farandole.testing.store_conformance",
    "farandole.testing.leases_conformance",
    "farandole.testing.observer_conformance",
    "farandole.testing.deadline_action_conformance",
)

from farandole.testing.deadline_action_conformance import DeadlineActionConformance  # noqa: E402 - rewritten before
from farandole.testing.leases_conformance import LeasesConformance  # noqa: E402 - rewritten before imported
from farandole.testing.observer_conformance import ObserverConformance  # noqa: E402 - rewritten before imported
from farandole.testing.store_conformance import CorrelatorStoreConformance  # noqa: E402 - rewritten before imported

__all__ = ["CorrelatorStoreConformance", "DeadlineActionConformance", "LeasesConformance", "ObserverConformance"]

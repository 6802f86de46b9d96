"""Simulation: a choreography's real handlers under seeded faults, in virtual time.

A scenario says who takes part, what starts sagas, and what must hold in the end. `simulate` runs it for many seeds; so
does `python -m farandole.testing.simulation MODULE:FUNCTION`. A seed that fails is the same run each time.
"""

from farandole.testing.simulation.campaign import SimulationFailedError, Summary, simulate
from farandole.testing.simulation.faults import Fault, Faults
from farandole.testing.simulation.run import Result, run_seed
from farandole.testing.simulation.scenario import Scenario, ScenarioOf, Start, with_deadlines
from farandole.testing.simulation.world import World

__all__ = [
    "Fault",
    "Faults",
    "Result",
    "Scenario",
    "ScenarioOf",
    "SimulationFailedError",
    "Start",
    "Summary",
    "World",
    "run_seed",
    "simulate",
    "with_deadlines",
]

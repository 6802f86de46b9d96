"""How a stack stands: what the supervisor knows of each process, and what each service says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from farandole.stack.control import ServiceState, State, SupervisorClient, SupervisorState
from farandole.stack.health import Probe, ask_all
from farandole.stack.plan import Plan
from farandole.stack.processes import live_processes
from farandole.stack.shape import Shape


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One service."""

    name: str
    state: State | Literal["unsupervised"]
    """`unsupervised`: it runs, but its supervisor was killed; `farandole up` puts that right."""
    pid: int | None
    restarts: int
    uptime_seconds: float | None
    address: str
    health: Literal["SERVING", "NOT_SERVING", "UNREACHABLE"] | None
    """None where it does not run."""
    reason: str
    """Why it does not run or does not serve."""

    @property
    def is_serving(self) -> bool:
        """Whether it does its work."""
        return self.health == "SERVING"


@dataclass(frozen=True, slots=True)
class StackStatus:
    """A whole stack."""

    home: str
    shape: Shape
    supervisor_pid: int | None
    services: tuple[ServiceStatus, ...]

    @property
    def is_serving(self) -> bool:
        """Whether every service does its work."""
        return all(service.is_serving for service in self.services)

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        return asdict(self)


def read_status(plan: Plan) -> StackStatus:
    """How the stack of a plan stands now. Raises `StackError` where a supervisor runs but does not answer."""
    supervisor = SupervisorClient(plan.home).state()
    services = _without_supervisor(plan) if supervisor is None else supervisor.services
    return combine(plan, supervisor, services)


def combine(plan: Plan, supervisor: SupervisorState | None, services: Sequence[ServiceState]) -> StackStatus:
    """Adds what the running services say of themselves."""
    running = [service for service in services if service.pid is not None]
    probes = [Probe(service.health_address, service.kind) for service in running]
    health = dict(zip((service.name for service in running), ask_all(probes), strict=True))
    return StackStatus(
        home=str(plan.home.directory),
        shape=plan.shape,
        supervisor_pid=supervisor.pid if supervisor else None,
        services=tuple(
            ServiceStatus(
                name=service.name,
                state="unsupervised" if supervisor is None and service.pid is not None else service.state,
                pid=service.pid,
                restarts=service.restarts,
                uptime_seconds=service.uptime_seconds,
                address=service.address,
                health=health[service.name].status if service.name in health else None,
                reason=service.reason or (health[service.name].reason if service.name in health else ""),
            )
            for service in services
        ),
    )


def _without_supervisor(plan: Plan) -> list[ServiceState]:
    alive = {record.service: record.pid for record in live_processes(plan.home)}
    return [
        ServiceState(
            name=planned.name,
            state="running" if planned.name in alive else "stopped",
            pid=alive.get(planned.name),
            restarts=0,
            uptime_seconds=None,
            address=planned.port.address,
            kind=planned.kind,
            health_address=planned.health_address,
            reason="",
        )
        for planned in plan.services
    ]

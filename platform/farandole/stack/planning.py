"""Making the plan of a stack: from its file, its shape, and a caller's environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from farandole.errors import ConfigurationError, Fault
from farandole.stack.embedded_postgres import STOP_SIGNAL, PostgresCluster, find_programs
from farandole.stack.home import Home
from farandole.stack.plan import Plan, PlannedService
from farandole.stack.ports import POSTGRES_PORT, Port, resolve_port
from farandole.stack.shape import Shape, kept_shape, several_need_postgres
from farandole.stack.stack_file import POSTGRES, BrokerEntry, ServiceEntry, StackFile, placeholder, read_stack_file

CLUSTER_SERVERS = 3
REPLICA_PORT_STRIDE = 100
"""How far the port of a service's next replica is from the one before."""
METRICS_VARIABLE = "FARANDOLE_STACK_METRICS"
"""`on`: every service shows its metrics, on a port of its own."""
METRICS_PORT_DISTANCE = 10_000
"""How far that is from its gRPC port."""
LANES_VARIABLE = "FARANDOLE_LANES"
SEVERAL_LANES = 8
"""Of services with several replicas: some for each, and few consumers. All replicas of a service have as many."""

_POSTGRES_STOP_SECONDS = 30.0


def make_plan(file: Path, environment: Mapping[str, str], shape: Shape | None = None) -> Plan:
    """The plan of a stack file under a caller's environment; without a shape, in that of its data.

    Raises `ConfigurationError` that lists every fault.
    """
    path = file.resolve()
    written = read_stack_file(path)
    home = Home.of(path.parent, environment)
    if shape is None:
        shape = kept_shape(home) or Shape()
    planner = _Planner(home, shape, environment)
    planner.take(written)
    return Plan(
        file=path,
        home=home,
        services=tuple(planner.services),
        shape=shape,
        postgres=planner.postgres,
        addresses=planner.addresses,
        next_steps=written.next_steps,
        logs=written.logs,
    )


class _Planner:
    """Plans one entry of the file after the other."""

    def __init__(self, home: Home, shape: Shape, environment: Mapping[str, str]) -> None:
        self._home = home
        self._shape = shape
        self._environment = environment
        self._faults: list[Fault] = []
        self._names: dict[str, tuple[str, ...]] = {}
        """By an entry of the file: what it became."""
        self._nats_urls: list[str] = []
        self.postgres: PostgresCluster | None = None
        self.services: list[PlannedService] = []
        self.addresses: dict[str, str] = {}

    def take(self, written: StackFile) -> None:
        """Plans everything. Raises `ConfigurationError` that lists every fault."""
        if self._environment.get(METRICS_VARIABLE, "") not in {"", "on", "off"}:
            self._faults.append(Fault(METRICS_VARIABLE, "must be on or off"))
        if self._shape.database == "postgres":
            self._attempt(self._database())
        for entry in written.services:
            planned = self._servers(entry) if isinstance(entry, BrokerEntry) else self._replicas(entry)
            self._names[entry.name] = self._attempt(planned)
        if self._shape.nats == "cluster" and not self._nats_urls and not self._faults:
            self._faults.append(Fault("--nats", "a cluster needs `broker: embedded` in the stack file"))
        self._look_for_clashes()
        if self._faults:
            raise ConfigurationError(self._faults)

    def _attempt(self, planned: Iterator[PlannedService]) -> tuple[str, ...]:
        """Adds what comes of an entry; returns the names."""
        names: list[str] = []
        try:
            for service in planned:
                self.services.append(service)
                names.append(service.name)
        except ConfigurationError as error:
            self._faults += [fault for fault in error.faults if fault not in self._faults]
        return tuple(names)

    def _database(self) -> Iterator[PlannedService]:
        port = self._port(POSTGRES, POSTGRES_PORT)
        self.postgres = PostgresCluster(self._home.postgres, port.number, find_programs(self._environment))
        yield PlannedService(
            name=POSTGRES,
            kind="database",
            command=(),
            port=port,
            depends_on=(),
            environment={},
            stop_timeout_seconds=_POSTGRES_STOP_SECONDS,
            stop_signal=STOP_SIGNAL,
        )

    def _servers(self, entry: BrokerEntry) -> Iterator[PlannedService]:
        count = CLUSTER_SERVERS if self._shape.nats == "cluster" else 1
        for number in range(count):
            name = _numbered(entry.name, number)
            port = self._port(name, entry.port + number)
            self._nats_urls.append(f"nats://{port.address}")
            self.addresses.setdefault(placeholder(entry.name), port.address)
            yield PlannedService(
                name=name if count == 1 else f"{entry.name}-{number + 1}",
                kind="broker",
                command=(),
                port=port,
                depends_on=(),
                environment={},
                stop_timeout_seconds=entry.stop_timeout_seconds,
                monitoring=self._port(name, entry.monitoring_port + number, "monitoring"),
                routes=self._port(name, entry.routes_port + number, "routes") if count > 1 else None,
            )

    def _replicas(self, entry: ServiceEntry) -> Iterator[PlannedService]:
        count = entry.replicas or self._shape.replicas
        if count > 1 and self._shape.database == "sqlite":
            self._faults.append(several_need_postgres(f"{entry.name}.replicas"))
        for number in range(count):
            name = _numbered(entry.name, number)
            default = entry.grpc_port + number * REPLICA_PORT_STRIDE
            port = self._port(name, default)
            metrics = self._port(name, default + METRICS_PORT_DISTANCE, "metrics") if self._shows_metrics else None
            self.addresses.setdefault(placeholder(entry.name), port.address)
            needed = [needed for dependency in entry.depends_on for needed in self._names[dependency]]
            yield PlannedService(
                name=name,
                kind="service",
                command=entry.command,
                port=port,
                depends_on=(*([POSTGRES] if self.postgres else []), *needed),
                environment=self._environment_of(entry, name, port, metrics, count),
                stop_timeout_seconds=entry.stop_timeout_seconds,
                database=entry.name,
                metrics=metrics,
            )

    def _environment_of(
        self, entry: ServiceEntry, name: str, port: Port, metrics: Port | None, count: int
    ) -> dict[str, str]:
        environment = {
            "FARANDOLE_GRPC_ADDRESS": port.address,
            **self._database_of(entry.name),
            "FARANDOLE_REPLICA": name,
        }
        if self._nats_urls:
            environment["FARANDOLE_NATS_URL"] = ",".join(self._nats_urls)
        if metrics is not None:
            environment["FARANDOLE_METRICS_ADDRESS"] = metrics.address
        if count > 1 and not self._environment.get(LANES_VARIABLE):
            environment[LANES_VARIABLE] = str(SEVERAL_LANES)
        return {**environment, **entry.environment}

    def _database_of(self, service: str) -> dict[str, str]:
        if self.postgres is not None:
            return self.postgres.environment(service)
        return {"FARANDOLE_DATABASE_URL": self._home.database_url(service)}

    @property
    def _shows_metrics(self) -> bool:
        return self._environment.get(METRICS_VARIABLE) == "on"

    def _port(self, service: str, default: int, purpose: str = "") -> Port:
        return resolve_port(service, default, self._environment, purpose)

    def _look_for_clashes(self) -> None:
        """Notes ports and names that two would have: a replica may be called as another service is."""
        users: dict[int, Port] = {}
        names: set[str] = set()
        for service in self.services:
            if service.name in names:
                self._faults.append(Fault(service.name, "is the name of a replica, and of another service too"))
            names.add(service.name)
            for port in service.ports:
                if port.number in users:
                    self._faults.append(
                        Fault(port.variable, f"port {port.number} is {users[port.number].variable}'s too")
                    )
                users.setdefault(port.number, port)


def _numbered(name: str, number: int) -> str:
    """The name of one of several: the first has the plain one, the next is `payments-2`."""
    return name if number == 0 else f"{name}-{number + 1}"

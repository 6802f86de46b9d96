"""What starts each process of a stack: a team's command, or a server that the stack brings and configures itself."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from farandole.stack.embedded_broker import Routes, check_version, find_nats_server, render_configuration
from farandole.stack.embedded_postgres import PostgresCluster
from farandole.stack.plan import Plan, PlannedService, resolve_command
from farandole.stack.unprivileged import account_of_caller

_CLUSTER = "farandole"


class StartCommands:
    """The commands of one run of a stack: the servers of a cluster know each other by a password made for it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._routes_password = secrets.token_urlsafe()

    def of(self, planned: PlannedService, environment: Mapping[str, str]) -> list[str]:
        """The command with its program found, and what it reads at its start written.

        Raises `OSError`, or `FarandoleError` where a program is missing or is not the one that is needed.
        """
        match planned.kind:
            case "broker":
                return self._broker(planned, environment)
            case "database":
                return self._database(environment)
            case "service":
                return resolve_command(planned.command, environment.get("PATH", os.defpath))

    def _database(self, environment: Mapping[str, str]) -> list[str]:
        assert self._plan.postgres is not None, "its server is planned"
        cluster = PostgresCluster.of(
            self._plan.postgres.directory, port=self._plan.postgres.port, environment=environment
        )
        if account_of_caller() is not None:
            self._plan.home.let_through()
        cluster.prepare()
        return cluster.command

    def _broker(self, planned: PlannedService, environment: Mapping[str, str]) -> list[str]:
        home = self._plan.home
        binary = find_nats_server(environment)
        check_version(binary)
        assert planned.monitoring is not None, "a broker is asked for its health"
        routes = None
        if planned.routes is not None:
            ports = tuple(broker.routes.number for broker in self._plan.brokers if broker.routes is not None)
            routes = Routes(_CLUSTER, planned.routes.number, ports, self._routes_password)
        configuration = home.broker_configuration(planned.name)
        configuration.write_text(
            render_configuration(
                server_name=planned.name,
                port=planned.port.number,
                monitoring_port=planned.monitoring.number,
                store=home.broker_store(planned.name) if routes else home.broker_store(),
                routes=routes,
            ),
            encoding="utf-8",
        )
        return [str(binary), "--config", str(configuration)]

"""Where commands look for the broker and the correlator: what variables say, else where the embedded stack has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from farandole.lifecycle import CORRELATOR
from farandole.stack.plan import Plan
from farandole.stack.planning import make_plan
from farandole.stack.ports import BROKER_PORT, CORRELATOR_PORT, resolve_port
from farandole.stack.stack_file import nearest_stack_file


def stack_here(environment: Mapping[str, str], directory: Path) -> Plan | None:
    """The stack whose file is in a directory or above it, in the shape of its data; None where there is no file.

    Raises as `make_plan` does.
    """
    file = nearest_stack_file(directory)
    return None if file is None else make_plan(file, environment)


def default_nats_url(environment: Mapping[str, str], directory: Path) -> str:
    """Where a command looks for the broker: `FARANDOLE_NATS_URL`, else the embedded stack's, all servers of a cluster.

    Raises as `make_plan` does.
    """
    if given := environment.get("FARANDOLE_NATS_URL"):
        return given
    stack = stack_here(environment, directory)
    return (stack and stack.nats_url) or f"nats://{resolve_port('nats', BROKER_PORT, environment).address}"


def default_correlator_address(environment: Mapping[str, str], directory: Path) -> str:
    """Where a command looks for the correlator: `FARANDOLE_CORRELATOR_ADDRESS`, else the embedded stack's.

    A target of gRPC; of several replicas the first one that answers is asked. Raises as `make_plan` does.
    """
    if given := environment.get("FARANDOLE_CORRELATOR_ADDRESS"):
        return given
    stack = stack_here(environment, directory)
    addresses = [replica.port.address for replica in stack.replicas(CORRELATOR)] if stack else []
    if len(addresses) > 1:
        return f"ipv4:{','.join(addresses)}"
    return addresses[0] if addresses else resolve_port("correlator", CORRELATOR_PORT, environment).address

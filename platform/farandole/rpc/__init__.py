"""The gRPC kit: a server with honest health, reflection, checked requests, readable errors; and how to read those."""

from farandole.rpc.client import Problem, describe, read_problem
from farandole.rpc.health import HealthMonitor
from farandole.rpc.server import Rpc, RpcServer, serve

__all__ = ["HealthMonitor", "Problem", "Rpc", "RpcServer", "describe", "read_problem", "serve"]

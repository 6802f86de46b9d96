"""`choreography.v1.PluginService`: what a correlator answers about its plug-ins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from choreography.v1 import plugin_service_pb2, plugin_service_pb2_grpc
from farandole.correlator.plugin_guard import Standing
from farandole.plugins import Kind

_KINDS: Mapping[Kind, plugin_service_pb2.PluginKind.ValueType] = {
    Kind.STORE: plugin_service_pb2.PLUGIN_KIND_STORE,
    Kind.DEADLINE_ACTION: plugin_service_pb2.PLUGIN_KIND_DEADLINE_ACTION,
    Kind.OBSERVER: plugin_service_pb2.PLUGIN_KIND_OBSERVER,
}


class PluginService(plugin_service_pb2_grpc.PluginServiceServicer):
    """Answers from how the plug-ins stand now."""

    def __init__(self, standings: Callable[[], Sequence[Standing]]) -> None:
        self._standings = standings

    async def ListPlugins(  # noqa: N802 - the RPC's name
        self, _request: plugin_service_pb2.ListPluginsRequest, _context: grpc.aio.ServicerContext[Any, Any]
    ) -> plugin_service_pb2.ListPluginsResponse:
        """Every plug-in in use."""
        return plugin_service_pb2.ListPluginsResponse(plugins=[_message(standing) for standing in self._standings()])


def _message(standing: Standing) -> plugin_service_pb2.Plugin:
    plugin = standing.plugin
    return plugin_service_pb2.Plugin(
        kind=_KINDS[plugin.kind],
        name=plugin.name,
        package=plugin.package,
        package_version=plugin.version,
        done=standing.done,
        failed=standing.failed,
        missed=standing.missed,
        waiting=standing.waiting,
        problem=standing.problem,
    )

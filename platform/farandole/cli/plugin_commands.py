"""`plugins`: what is installed, what is in use, and what is wrong with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import ANSWER_TIMEOUT_SECONDS, AddressOption, JsonOption, correlator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from choreography.v1 import plugin_service_pb2

_DATABASE_URL = "FARANDOLE_DATABASE_URL"
_DEADLINE_ACTIONS = "FARANDOLE_DEADLINE_ACTIONS"
_OBSERVERS = "FARANDOLE_OBSERVERS"


def plugins(
    running: Annotated[
        bool, typer.Option("--running", help="Ask the correlator how those that it uses are doing.")
    ] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """List the plug-ins that are installed, whether the settings here use them, and what is wrong with each."""
    from farandole.cli.output import quiet_logs

    quiet_logs()
    if running or address is not None:
        _print_running(_ask(address), as_json)
    else:
        _print_installed(as_json)


def _print_installed(as_json: bool) -> None:
    from farandole.cli.output import console, print_json, printable, table
    from farandole.plugins import Kind, installed

    used, unknown = _used()
    found = [plugin for kind in Kind for plugin in installed(kind)]
    rows = [
        {
            "kind": plugin.kind.word,
            "name": plugin.name,
            "package": f"{plugin.package} {plugin.version}",
            "in_use": (plugin.kind, plugin.name) in used,
            "problem": _problem_of(plugin, [other for other in found if other.kind is plugin.kind]),
        }
        for plugin in found
    ]
    if as_json:
        print_json({"plugins": rows, "faults": unknown})
    else:
        printed = table("KIND", "NAME", "PACKAGE", "IN USE", "WHAT IS WRONG")
        for row in rows:
            printed.add_row(
                *(printable(str(row[column])) for column in ("kind", "name", "package")),
                "yes" if row["in_use"] else "",
                printable(str(row["problem"])),
            )
        console().print(printed)
        for fault in unknown:
            typer.echo(printable(fault), err=True)
    if unknown or any(row["in_use"] and row["problem"] for row in rows):
        raise typer.Exit(1)


def _used() -> tuple[set[tuple[Any, str]], list[str]]:
    """What the settings of this environment use, by kind and name; and what is wrong with them, line by line."""
    import os

    from farandole.correlator.stores import scheme_of
    from farandole.errors import PluginError
    from farandole.plugins import Kind, find, names

    settings = {
        _DATABASE_URL: (Kind.STORE, [scheme_of(os.environ.get(_DATABASE_URL) or "sqlite:")]),
        _DEADLINE_ACTIONS: (Kind.DEADLINE_ACTION, names(os.environ.get(_DEADLINE_ACTIONS, ""))),
        _OBSERVERS: (Kind.OBSERVER, names(os.environ.get(_OBSERVERS, ""))),
    }
    used: set[tuple[Any, str]] = set()
    faults: list[str] = []
    for variable, (kind, given) in settings.items():
        for name in given:
            used.add((kind, name))
            try:
                find(kind, name)
            except PluginError as error:
                faults.append(f"{variable}: {error}")
    return used, faults


def _problem_of(plugin: Any, of_its_kind: Sequence[Any]) -> str:  # noqa: ANN401 - a plug-in, loaded when used
    from farandole.errors import PluginError

    if others := [other.package for other in of_its_kind if other.name == plugin.name and other is not plugin]:
        return f"{', '.join(others)} has one of the same name; uninstall one of them"
    try:
        plugin.load()
    except PluginError as error:
        return str(error)
    return ""


def _ask(address: str | None) -> Sequence[plugin_service_pb2.Plugin]:
    from choreography.v1 import plugin_service_pb2, plugin_service_pb2_grpc

    with correlator(address) as channel:
        stub = plugin_service_pb2_grpc.PluginServiceStub(channel)
        return stub.ListPlugins(plugin_service_pb2.ListPluginsRequest(), timeout=ANSWER_TIMEOUT_SECONDS).plugins


def _print_running(found: Sequence[plugin_service_pb2.Plugin], as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import plugin_service_pb2
    from farandole.cli.output import console, print_json, printable, table, word

    if as_json:
        print_json({"plugins": [MessageToDict(plugin) for plugin in found]})
        return
    printed = table("KIND", "NAME", "PACKAGE", "DONE", "FAILED", "MISSED", "WAITING", "WHAT IS WRONG")
    for plugin in found:
        kind = word(plugin_service_pb2.PluginKind, plugin.kind, "PLUGIN_KIND_").lower().replace("_", " ")
        counts = (plugin.done, plugin.failed, plugin.missed, plugin.waiting)
        is_store = plugin.kind == plugin_service_pb2.PLUGIN_KIND_STORE
        printed.add_row(
            kind,
            printable(plugin.name),
            printable(f"{plugin.package} {plugin.package_version}"),
            *("" if is_store else str(count) for count in counts),
            printable(plugin.problem),
        )
    console().print(printed)

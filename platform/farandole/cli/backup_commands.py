"""`backup` and `restore`: every store and every stream, into a directory and out of it."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from farandole.cli.stack_commands import FileOption, NatsOption, plan_of
from farandole.errors import InvalidArgumentError, SnapshotError, StackError

if TYPE_CHECKING:
    from farandole.backup.backing_up import Manifest, Report
    from farandole.stack.plan import Plan
    from farandole.stack.shape import NatsKind, Shape

DirectoryArgument = Annotated[Path, typer.Argument(help="Of this one backup.", show_default=False)]
StoreOption = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="SERVICE=URL",
        help="A database, where services are not those of the embedded stack; once for each.",
        show_default=False,
    ),
]


def backup(directory: DirectoryArgument, store: StoreOption = None, file: FileOption = None) -> None:
    """Back everything up while it runs: every database, then every stream, into a new directory."""
    from farandole.cli.output import print_next, progress, quiet_logs, shell_word

    quiet_logs()
    given = _given(store)
    plan = None if given else plan_of(file)
    stores = given if plan is None else _stores(plan)
    with progress() as report:
        manifest = asyncio.run(_back_up(directory, stores, _nats_url(plan), report))
    _print_manifest(manifest)
    print_next([f"farandole restore {shell_word(str(directory))}   # in an empty place"])


def restore(
    directory: DirectoryArgument,
    store: StoreOption = None,
    file: FileOption = None,
    nats: NatsOption = None,
    stream_replicas: Annotated[
        int | None,
        typer.Option(
            "--stream-replicas", min=1, max=5, help="With --store: of the streams, where the broker has other servers."
        ),
    ] = None,
) -> None:
    """Restore a backup into an empty place: a stack that has no data, or databases and a broker that are empty.

    Nothing is overwritten, and nothing written before all places were looked at. Where it can't be finished, what was
    begun in a stack's place is removed again; with --store the streams are, and it tells which databases are filled.
    """
    from farandole.backup.backing_up import read_backup
    from farandole.cli.output import print_next, progress, quiet_logs

    quiet_logs()
    manifest = read_backup(directory)
    given = _given(store)
    plan = None if given else plan_of(file, _shape(manifest, nats or "single"))
    with progress() as report:
        if plan is None:
            asyncio.run(_restore(directory, manifest, given, None, stream_replicas, report))
        else:
            _restore_stack(directory, manifest, plan, report)
    _print_manifest(manifest)
    if plan is not None:
        print_next([plan.shape.command, "farandole replay"])


async def _back_up(directory: Path, stores: Mapping[str, str], nats_url: str | None, report: Report) -> Manifest:
    from farandole.backup.backing_up import back_up
    from farandole.backup.stores import find_program
    from farandole.cli.live_correlator import connected_broker

    async with connected_broker(nats_url) as broker:
        return await back_up(directory, stores, broker, find_program, report)


def _restore_stack(directory: Path, manifest: Manifest, plan: Plan, report: Report) -> None:
    from farandole.stack.bring_up import bring_up_servers
    from farandole.stack.control import SupervisorClient
    from farandole.stack.take_down import take_down

    if plan.home.data.is_dir() and any(plan.home.data.iterdir()):
        raise SnapshotError(
            f"{plan.home.data} holds data already: a backup is restored into an empty place only; "
            "FARANDOLE_HOME names another one"
        )
    if SupervisorClient(plan.home).state() is not None:
        raise StackError("the stack is running: a backup is restored into an empty place only; `farandole down` first")
    try:
        bring_up_servers(plan, os.environ, Path.cwd())
        asyncio.run(_restore(directory, manifest, _stores(plan), _nats_url(plan), len(plan.brokers) or None, report))
    except BaseException:
        take_down(plan)
        shutil.rmtree(plan.home.data)  # it was empty
        raise
    take_down(plan)


async def _restore(
    directory: Path,
    manifest: Manifest,
    stores: Mapping[str, str],
    nats_url: str | None,
    replicas: int | None,
    report: Report,
) -> None:
    from farandole.backup.backing_up import restore
    from farandole.backup.stores import find_program
    from farandole.cli.live_correlator import connected_broker

    async with connected_broker(nats_url) as broker:
        await restore(directory, manifest, stores, broker, find_program, report, replicas=replicas)


def _shape(manifest: Manifest, nats: NatsKind) -> Shape:
    """That of a stack into which a backup fits."""
    from farandole.stack.shape import Shape

    is_postgres = any(one.kind == "postgresql" for one in manifest.stores)
    return Shape(database="postgres" if is_postgres else "sqlite", nats=nats)


def _nats_url(plan: Plan | None) -> str | None:
    """The broker to which the stores belong: that of the stack, whatever variables say; None for the variable's."""
    return None if plan is None else plan.nats_url


def _stores(plan: Plan) -> dict[str, str]:
    """The database of every service of the stack. What PostgreSQL's programs need to get in is set for this process."""
    services = [service for service in plan.services if service.kind == "service"]
    if plan.postgres is not None:
        os.environ["PGPASSFILE"] = str(plan.postgres.passwords)
    return {service.database: service.environment["FARANDOLE_DATABASE_URL"] for service in services}


def _given(stores: list[str] | None) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in stores or ():
        name, is_given, url = text.partition("=")
        if not name or not is_given or "://" not in url:
            raise InvalidArgumentError(
                "--store", f"must be SERVICE=URL, such as payments=sqlite:///payments.db: {text}"
            )
        found[name] = _with_password(url)
    return found


def _with_password(url: str) -> str:
    from farandole.settings import with_password

    file = os.environ.get("FARANDOLE_DATABASE_PASSWORD_FILE")
    parts = urlsplit(url)
    if not file or parts.scheme != "postgresql" or parts.password is not None:
        return url
    try:
        return with_password(url, Path(file))
    except ValueError as error:
        raise InvalidArgumentError("--store", str(error)) from None


def _print_manifest(manifest: Manifest) -> None:
    from farandole.cli.output import console, table

    made = table("WHAT", "KIND", "BYTES", "EVENTS")
    for one in manifest.files:
        events = str(one.stream["state"]["messages"]) if one.stream else ""
        made.add_row(one.name, one.kind, str(one.size), events)
    console().print(made)
    typer.echo(f"complete as of {manifest.made}")

"""`correlator`, `provision` and `pub`: what works on the stream itself."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.errors import ConfigurationError, Fault, InvalidArgumentError, StreamDriftError

if TYPE_CHECKING:
    from farandole.broker.publisher import Acknowledgement
    from farandole.envelope import Publication
    from farandole.registry import EventType, Registry
    from farandole.settings import Settings


def correlator() -> None:
    """Run the correlator in this process, until it is told to end."""
    from farandole.correlator.main import main

    main()


def provision(
    replicas: Annotated[
        int | None,
        typer.Option(
            "--replicas", min=1, max=5, help="Copies of each stream that there should be; of new ones else 1."
        ),
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Change in place what can be changed with nothing lost.")
    ] = False,
) -> None:
    """Make the streams that do not exist yet, and show what of the others is not as it should be.

    Ends with 1 where something is not. Deletes nothing, and changes nothing without --apply.
    """
    from farandole.cli.output import colored, console, quiet_logs, table
    from farandole.stack.addresses import default_nats_url
    from farandole.stack.provisioning import survey_broker

    quiet_logs()
    found = survey_broker(default_nats_url(os.environ, Path.cwd()), replicas=replicas, apply=apply)
    drifted = {drift.stream for drift in found.drift}
    for stream in found.streams:
        how = "is there already" if stream not in found.made else "made"
        if stream in drifted:
            how += ", and not as it should be"
        elif stream not in found.made:
            how += ", and as it should be"
        typer.echo(f"{stream}: {how}")
    for change in found.changed:
        typer.echo(f"{change.stream}: {change.setting} was {change.actual}, and is {change.wanted} now")
    out = console()
    if found.drift:
        shown = table("STREAM", "SETTING", "IS", "SHOULD BE", "TO CHANGE IT")
        for drift in found.drift:
            remedy = drift.obstacle or "farandole provision --apply" + (f" --replicas {replicas}" if replicas else "")
            shown.add_row(drift.stream, drift.setting, *map(colored, (str(drift.actual), str(drift.wanted), remedy)))
        out.print()
        out.print(shown)
    if found.idle:
        idle = table("CONSUMER", "OF", "BEHIND BY", "LAST ACKNOWLEDGED")
        for consumer in found.idle:
            last = consumer.last_active.isoformat(sep=" ", timespec="seconds") if consumer.last_active else ""
            idle.add_row(consumer.name, colored(consumer.description), str(consumer.pending), last)
        out.print("\nNobody reads these durable consumers: their services are stopped, or are no more.")
        out.print(idle)
        out.print(f"To remove one that is not needed any more: nats consumer rm EVENTS {found.idle[0].name}")
    if found.drift:
        raise StreamDriftError("not every stream is as it should be")


def pub(
    type_: Annotated[
        str,
        typer.Argument(metavar="TYPE", help="The full event type, such as orders.v1.OrderCreated.", show_default=False),
    ],
    body: Annotated[
        str,
        typer.Argument(metavar="JSON", help="The event as ProtoJSON; `-` reads standard input.", show_default=False),
    ],
    key: Annotated[
        str, typer.Option("--key", help="The correlation key, where the body leaves it out.", show_default=False)
    ] = "",
    source: Annotated[str, typer.Option("--source", help="Who publishes (ce-source).")] = "farandole-cli",
) -> None:
    """Publish an event that has been checked, and wait until the stream has stored it."""
    import asyncio
    from datetime import UTC, datetime

    from farandole.cli.output import quiet_logs
    from farandole.envelope import encode
    from farandole.registry import Registry
    from farandole.settings import Settings
    from farandole.stack.addresses import default_nats_url
    from farandole.stack.ports import CORRELATOR_PORT

    quiet_logs()
    settings = Settings.load("pub", grpc_port=CORRELATOR_PORT, nats_url=default_nats_url(os.environ, Path.cwd()))
    path = settings.descriptors
    try:
        serialized = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(
            [Fault(str(path), f"can't be read ({error.strerror}); FARANDOLE_DESCRIPTORS names the descriptor set")]
        ) from None
    registry = Registry.of_descriptor_set(serialized, where=str(path))
    event_type = _event_type(registry, type_)
    message = _parsed(event_type, sys.stdin.read() if body == "-" else body, key)
    publication = encode(event_type, message, source=source, time=datetime.now(UTC))
    receipt = asyncio.run(_publish(settings, publication))
    note = "; it was there already, as a duplicate it is not stored again" if receipt.is_duplicate else ""
    typer.echo(f"{publication.subject} is stored at sequence {receipt.sequence}{note}")
    typer.echo(f"next: farandole sagas watch {publication.key}")


def _event_type(registry: Registry, name: str) -> EventType:
    from farandole.stack.stack_file import did_you_mean

    event_type = registry.get(name)
    if event_type is None:
        known = [known.name for known in registry]
        raise InvalidArgumentError("TYPE", f"{name} is no event of the descriptor set{did_you_mean(name, known)}")
    return event_type


def _parsed(event_type: EventType, text: str, key: str) -> Any:  # noqa: ANN401 - a message of the type
    """The body with the key in it. Raises `InvalidArgumentError` where it is not this type, or has another key."""
    from google.protobuf import json_format

    message = event_type.message_class()
    try:
        json_format.Parse(text, message)
    except json_format.ParseError as error:
        raise InvalidArgumentError("JSON", f"is no {event_type.name}: {error}") from None
    own = getattr(message, event_type.key_field)
    if key and own and own != key:
        raise InvalidArgumentError("--key", f"is {key}, but the body's {event_type.key_field} is {own}")
    if key:
        setattr(message, event_type.key_field, key)
    return message


async def _publish(settings: Settings, publication: Publication) -> Acknowledgement:
    from farandole.broker.connection import Broker
    from farandole.broker.publisher import Publisher
    from farandole.stack.provisioning import with_leader

    async def publish(broker: Broker) -> Acknowledgement:
        publisher = Publisher(broker)
        try:
            return await publisher.publish(publication)
        finally:
            await publisher.stop()

    return await with_leader(settings, publish)

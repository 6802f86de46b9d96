"""`correlator`, `provision` and `pub`: what works on the stream itself."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.errors import ConfigurationError, Fault, InvalidArgumentError

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
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=5, help="Of streams that are made.")] = 1,
) -> None:
    """Make the streams that do not exist yet; existing ones are checked and never changed."""
    from farandole.cli.output import quiet_logs
    from farandole.stack.ports import default_nats_url
    from farandole.stack.provisioning import provision_broker

    quiet_logs()
    for outcome in provision_broker(default_nats_url(os.environ), replicas=replicas):
        said = {"created": "made", "unchanged": "is there already, and as it should be"}[outcome.outcome]
        typer.echo(f"{outcome.stream}: {said}")


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
    from farandole.stack.ports import CORRELATOR_PORT, default_nats_url

    quiet_logs()
    settings = Settings.load("pub", grpc_port=CORRELATOR_PORT, nats_url=default_nats_url(os.environ))
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
    from farandole.broker.publisher import Publisher
    from farandole.stack.provisioning import connect

    broker = await connect(settings)
    publisher = Publisher(broker)
    try:
        return await publisher.publish(publication)
    finally:
        await publisher.stop()
        await broker.close()

"""`replay`: the stream folded anew, beside the live records, as of a place, or under other definitions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import JsonOption, LimitOption
from farandole.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from choreography.v1 import saga_pb2
    from farandole.correlator.queries import SagaCount
    from farandole.correlator.store import CorrelatorStore
    from farandole.registry import Registry
    from farandole.replay.comparison import Comparison, Difference, Unchanged
    from farandole.replay.folding import Extent, Folded
    from farandole.replay.replaying import Verified
    from farandole.replay.trial import Trial, TriedSaga

DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--database",
        help="The correlator's database; else FARANDOLE_DATABASE_URL, else the embedded stack's.",
        show_default=False,
    ),
]

DIFFERS = 1
_MOST_DIFFERENCES_SHOWN = 20
"""Of one saga; --json has them all."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """How things stood at an earlier place."""

    store: CorrelatorStore
    folded: Folded
    extent: Extent


def replay(
    until_sequence: Annotated[
        int | None,
        typer.Option("--until-sequence", min=1, help="How sagas stood once the event of that sequence was folded."),
    ] = None,
    until_time: Annotated[
        str | None,
        typer.Option(
            "--until-time",
            help="The same by time, such as 2026-11-22T07:30:00Z; without a zone it is that of this machine.",
            show_default=False,
        ),
    ] = None,
    saga_id: Annotated[
        str | None, typer.Option("--saga", help="With --until-…: this one saga in full.", show_default=False)
    ] = None,
    sagas: Annotated[
        Path | None,
        typer.Option(
            "--sagas",
            help="Definitions to try: which open sagas would stand differently, had these been active all along.",
            show_default=False,
        ),
    ] = None,
    database: DatabaseOption = None,
    limit: LimitOption = 20,
    as_json: JsonOption = False,
) -> None:
    """Fold the stream into an empty store, and compare with the live one. Publishes nothing.

    Up to an earlier place it shows how sagas stood there, and compares those that have not changed since. Exits with 1
    where the records differ.
    """
    from farandole.cli.output import quiet_logs

    time = None if until_time is None else _moment(until_time)
    is_earlier = until_sequence is not None or time is not None
    if sagas is not None and is_earlier:
        raise InvalidArgumentError("--sagas", "tries definitions on how sagas stand now; leave --until-… away")
    if saga_id is not None and not is_earlier:
        raise InvalidArgumentError(
            "--saga", "shows one saga as of --until-sequence or --until-time; now: farandole sagas show"
        )
    if saga_id is not None and database is not None:
        raise InvalidArgumentError("--database", "is not read for --saga: what is shown comes from the stream alone")
    quiet_logs()
    if sagas is not None:
        asyncio.run(_try(sagas, database, limit, as_json=as_json))
    elif saga_id is not None:
        asyncio.run(_show_saga(saga_id, until_sequence, time, as_json=as_json))
    elif is_earlier:
        asyncio.run(_show_earlier(until_sequence, time, database, limit, as_json=as_json))
    else:
        asyncio.run(_compare(database, limit, as_json=as_json))


async def _compare(database: str | None, limit: int, *, as_json: bool) -> None:
    from farandole.cli.live_correlator import live_correlator
    from farandole.cli.output import progress
    from farandole.replay.replaying import live_view, verify

    async with live_correlator(database) as correlator, live_view(correlator.broker, correlator.store) as live:
        with progress() as report:
            verified = await verify(
                correlator.broker, live, registry=correlator.registry, report=partial(report, "folding the stream")
            )
    _print_verified(verified, limit, as_json=as_json)
    if not verified.comparison.are_identical:
        raise typer.Exit(DIFFERS)


def _print_verified(verified: Verified, limit: int, *, as_json: bool) -> None:
    from farandole.cli.output import print_json, print_next

    comparison = verified.comparison
    if as_json:
        print_json(
            {"identical": comparison.are_identical, **_folded_json(verified.folded), **_comparison_json(comparison)}
        )
        return
    typer.echo(folded_text(verified.folded))
    counts = (
        f"{comparison.sagas} sagas with {comparison.events} events in their histories, "
        f"{comparison.dead_letters} dead letters"
    )
    if comparison.are_identical:
        typer.echo(f"identical: {counts}")
        return
    print_comparison(comparison, limit)
    typer.echo(f"\ncompared: {counts}")
    first = comparison.detailed[0].name.split()
    if first[0] not in {"dead", "definition"}:
        print_next([f"farandole sagas show {first[1]}"])


def print_comparison(comparison: Comparison, limit: int) -> None:
    """What differs, each with what the live store has and what the stream gives."""
    from farandole.cli.output import console, printable, table

    if comparison.differing_records:
        typer.echo(f"DIFFERENT: {comparison.differing_records} records are not what the stream makes of them")
    if comparison.differing_readings:
        typer.echo(
            f"READ OTHERWISE: of {comparison.differing_readings} records only what their events say differs, as it "
            "does where the descriptor set is a newer one"
        )
    made = table("RECORD", "WHAT", "LIVE", "REPLAYED")
    for differing in comparison.detailed[:limit]:
        for difference in differing.differences[:_MOST_DIFFERENCES_SHOWN]:
            made.add_row(*map(printable, (differing.name, difference.what, difference.live, difference.replayed)))
        if (more := len(differing.differences) - _MOST_DIFFERENCES_SHOWN) > 0:
            made.add_row(printable(differing.name), f"and {more} more", "", "")
    console().print(made)
    if (more := comparison.differing_records + comparison.differing_readings - limit) > 0:
        typer.echo(f"and {more} more records; --limit shows more")


async def _show_saga(saga_id: str, sequence: int | None, time: datetime | None, *, as_json: bool) -> None:
    from google.protobuf.json_format import MessageToDict

    from farandole.cli.live_correlator import event_registry
    from farandole.cli.output import console, print_json
    from farandole.cli.saga_commands import saga_view
    from farandole.correlator.messages import definitions_by_version, saga_with_history

    registry = event_registry()
    async with _folded(sequence, time, registry) as earlier:
        folded = earlier.folded
        definitions = definitions_by_version(await earlier.store.definitions())
        found = await earlier.store.get_sagas(saga_id)
    if not found:
        raise NotFoundError(
            f"there was no saga {saga_id} yet at sequence {folded.last_sequence}", reason="SAGA_NOT_FOUND"
        )
    shown = [saga_with_history(one, definitions, registry) for one in found]
    if as_json:
        print_json({**_folded_json(folded), "sagas": [MessageToDict(one) for one in shown]})
        return
    typer.echo(f"{folded_text(folded)}\n")
    for one in shown:
        console().print(saga_view(one, ""))


async def _show_earlier(
    sequence: int | None, time: datetime | None, database: str | None, limit: int, *, as_json: bool
) -> None:
    from farandole.cli.live_correlator import event_registry, live_correlator
    from farandole.cli.output import print_json
    from farandole.correlator.filters import SAGA_FIELDS, parse_filter
    from farandole.correlator.messages import definitions_by_version, saga_message
    from farandole.correlator.queries import SagaQuery
    from farandole.replay.replaying import compare_unchanged_with, live_view

    async with _folded(sequence, time, event_registry()) as earlier:
        definitions = definitions_by_version(await earlier.store.definitions())
        counts = await earlier.store.summarize()
        page = await earlier.store.list_sagas(SagaQuery(parse_filter("NOT end_time:*", SAGA_FIELDS), limit=limit))
        sagas = [saga_message(saga, definitions) for saga in page.sagas]
        if not as_json:
            _print_earlier(earlier.folded, counts, sagas, has_more=page.next is not None)
        # what is shown stands, though there be no live store to compare it with
        async with live_correlator(database) as correlator, live_view(correlator.broker, correlator.store) as live:
            unchanged = await compare_unchanged_with(live, earlier.store, earlier.extent)
    if as_json:
        print_json({**_earlier_json(earlier.folded, counts, sagas), **_unchanged_json(unchanged)})
    else:
        _print_unchanged(unchanged, limit)
    if not unchanged.comparison.are_identical:
        raise typer.Exit(DIFFERS)


@asynccontextmanager
async def _folded(sequence: int | None, time: datetime | None, registry: Registry) -> AsyncIterator[Earlier]:
    """The stream folded so far, into a store that goes after."""
    from farandole.broker.streams import events_state
    from farandole.cli.live_correlator import connected_broker
    from farandole.cli.output import progress
    from farandole.replay.replaying import extent_of, replayed

    async with connected_broker() as broker, AsyncExitStack() as kept:
        state = await events_state(broker)
        extent = extent_of(state, sequence=sequence, time=time)
        with progress() as report:
            folding = replayed(
                broker, extent, registry=registry, state=state, report=partial(report, "folding the stream")
            )
            store, folded = await kept.enter_async_context(folding)
        yield Earlier(store, folded, extent)


def _print_earlier(folded: Folded, counts: Sequence[SagaCount], sagas: list[saga_pb2.Saga], *, has_more: bool) -> None:
    from farandole.cli.output import colored, console, table
    from farandole.cli.saga_commands import saga_table

    typer.echo(f"{folded_text(folded)}\n")
    made = table("DEFINITION", "STATUS", "HEALTH", "SAGAS")
    for count in counts:
        made.add_row(count.definition, colored(count.status.name), colored(count.health.name), str(count.count))
    console().print(made)
    if sagas:
        typer.echo("\nopen then:")
        console().print(saga_table(sagas))
        if has_more:
            typer.echo(f"\nthe first {len(sagas)}; --limit shows more")


def _print_unchanged(unchanged: Unchanged, limit: int) -> None:
    comparison = unchanged.comparison
    told = f"{comparison.sagas} sagas that have not changed since; {unchanged.changed} have"
    typer.echo()
    if comparison.are_identical:
        typer.echo(f"identical: {told}")
        return
    print_comparison(comparison, limit)
    typer.echo(f"\ncompared: {told}")


async def _try(directory: Path, database: str | None, limit: int, *, as_json: bool) -> None:
    from farandole.cli.live_correlator import live_correlator
    from farandole.cli.output import progress
    from farandole.definition_files import load_definitions
    from farandole.replay.replaying import live_view
    from farandole.replay.trial import try_definitions

    async with live_correlator(database) as correlator:
        definitions = load_definitions(directory, correlator.registry)
        async with live_view(correlator.broker, correlator.store) as live:
            with progress() as report:
                trial = await try_definitions(
                    correlator.broker,
                    live,
                    definitions,
                    registry=correlator.registry,
                    report=partial(report, "folding the stream under these definitions"),
                )
    _print_trial(trial, limit, as_json=as_json)


def _print_trial(trial: Trial, limit: int, *, as_json: bool) -> None:
    from farandole.cli.output import console, print_json, printable, table

    if as_json:
        print_json(_trial_json(trial))
        return
    if trial.folded is None:
        typer.echo("these definitions are the active ones: nothing would stand differently")
        return
    typer.echo(folded_text(trial.folded))
    names = ", ".join(f"{one.name} v{one.version}" for one in trial.changed)
    typer.echo(f"tried, as if they had been active since before every saga: {names}")
    typer.echo(
        f"{len(trial.differing)} sagas would stand differently; of these definitions {trial.open_sagas} are open"
    )
    if trial.differing:
        made = table("SAGA", "DEFINITION", "STANDS", "WOULD STAND", "AT ONCE")
        for saga in trial.differing[:limit]:
            made.add_row(*map(printable, (saga.key, saga.definition, *_standings(saga), _short(saga.told))))
        typer.echo()
        console().print(made)
        details = table("SAGA", "WHAT", "STANDS", "WOULD STAND")
        for saga in trial.differing[:limit]:
            for difference in saga.differences[:_MOST_DIFFERENCES_SHOWN]:
                details.add_row(*map(printable, (saga.key, difference.what, difference.live, difference.replayed)))
        typer.echo()
        console().print(details)
        if (more := len(trial.differing) - limit) > 0:
            typer.echo(f"\nand {more} more; --limit shows more")
    if trial.untried:
        typer.echo(f"\nnot tried, since their first events were pruned: {', '.join(trial.untried[:limit])}")


def _standings(saga: TriedSaga) -> tuple[str, str]:
    def told(one: Any) -> str:  # noqa: ANN401 - a record or None
        return "-" if one is None else f"{one.status.name} and {one.health.name}"

    return told(saga.live), told(saga.tried)


def _short(types: tuple[str, ...]) -> str:
    return ", ".join(one.rpartition(".")[2] for one in types)


def _trial_json(trial: Trial) -> dict[str, Any]:
    return {
        **({} if trial.folded is None else _folded_json(trial.folded)),
        "tried": [{"definition": one.name, "version": one.version} for one in trial.changed],
        "open": trial.open_sagas,
        "differing": [
            {
                "definition": one.definition,
                "saga": one.key,
                "stands": _standings(one)[0],
                "wouldStand": _standings(one)[1],
                "published": list(one.told),
                "differences": [_difference_json(difference) for difference in one.differences],
            }
            for one in trial.differing
        ],
        "untried": trial.untried,
    }


def folded_text(folded: Folded) -> str:
    """What was folded, in a line."""
    begun = f" behind the snapshot as of {folded.after}" if folded.after else ""
    stored = f", stored {_text(folded.last_time)}" if folded.last_time else ""
    return f"folded {folded.events} events{begun}, the last at {folded.last_sequence}{stored}"


def _text(time: datetime) -> str:
    return time.astimezone().isoformat(sep=" ", timespec="milliseconds")


def _folded_json(folded: Folded) -> dict[str, Any]:
    last_time = None if folded.last_time is None else folded.last_time.isoformat()
    return {
        "after": folded.after,
        "events": folded.events,
        "lastSequence": folded.last_sequence,
        "lastTime": last_time,
    }


def _earlier_json(folded: Folded, counts: Sequence[SagaCount], sagas: list[saga_pb2.Saga]) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    told = [
        {"definition": one.definition, "status": one.status.name, "health": one.health.name, "count": one.count}
        for one in counts
    ]
    return {**_folded_json(folded), "counts": told, "open": [MessageToDict(one) for one in sagas]}


def _unchanged_json(unchanged: Unchanged) -> dict[str, Any]:
    compared = _comparison_json(unchanged.comparison)
    del compared["deadLetters"]  # they are not compared
    return {"identical": unchanged.comparison.are_identical, "changedSince": unchanged.changed, **compared}


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "sagas": comparison.sagas,
        "historyEntries": comparison.events,
        "deadLetters": comparison.dead_letters,
        "differingRecords": comparison.differing_records,
        "differingReadings": comparison.differing_readings,
        "differing": [
            {"record": one.name, "differences": [_difference_json(difference) for difference in one.differences]}
            for one in comparison.detailed
        ],
    }


def _difference_json(difference: Difference) -> dict[str, str]:
    return {"what": difference.what, "live": difference.live, "replayed": difference.replayed}


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgumentError("--until-time", f"is no time such as 2026-11-22T07:30:00Z: {text}") from None
    return moment.astimezone(UTC)

"""`prune`: what is over goes from the stream, and a snapshot stands for it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import JsonOption
from farandole.cli.replay_commands import DatabaseOption
from farandole.errors import InvalidArgumentError, NotFoundError

if TYPE_CHECKING:
    from farandole.replay.holds import Holds
    from farandole.replay.pruning import PrunedStream

_MOST_HOLDS_SHOWN = 12


def prune(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would go, and what holds back; change nothing.")
    ] = False,
    until_sequence: Annotated[
        int | None, typer.Option("--until-sequence", min=1, help="Keep what stands behind this sequence in any case.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", help="A participant that need not answer; needs --reason.", show_default=False),
    ] = None,
    forget: Annotated[
        str | None,
        typer.Option(
            "--forget",
            help="Prune nothing, but let this participant, whose database is lost, begin anew; needs --reason.",
            show_default=False,
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who come later.", show_default=False)] = "",
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove the events of what is over, as far as nothing holds them back.

    Before anything goes, a snapshot of the correlator's records is stored and proven.
    """
    from farandole.cli.output import quiet_logs

    if (without or forget) and not reason.strip():
        raise InvalidArgumentError("--reason", "is needed with --without and --forget: what was known is given up")
    if forget is not None:
        _refuse_beside_forget(
            {
                "--dry-run": dry_run,
                "--until-sequence": until_sequence,
                "--without": without,
                "--database": database,
                "--json": as_json,
            }
        )
    quiet_logs()
    if forget is not None:
        asyncio.run(_forget(forget, reason))
    else:
        asyncio.run(
            _prune(dict.fromkeys(without or (), reason), until_sequence, database, dry_run=dry_run, as_json=as_json)
        )


def _refuse_beside_forget(options: Mapping[str, object]) -> None:
    for option, given in options.items():
        if given:
            raise InvalidArgumentError(option, "is of no effect with --forget, which prunes nothing; leave one away")


async def _prune(
    reasons: dict[str, str], until_sequence: int | None, database: str | None, *, dry_run: bool, as_json: bool
) -> None:
    from farandole.broker.pruned import pruned_of
    from farandole.cli.live_correlator import live_correlator
    from farandole.cli.output import progress
    from farandole.correlator.inquiry import BrokerInquiry
    from farandole.replay.holds import find_holds
    from farandole.replay.pruning import Pruning, refuse_silent
    from farandole.replay.replaying import live_view

    async with live_correlator(database) as correlator:
        broker = correlator.broker
        async with live_view(broker, correlator.store) as live:
            pruned = pruned_of(live.state)
            done = pruned.until if pruned else 0
            inquiry = BrokerInquiry(broker, time_limit_seconds=3.0)
            holds = await find_holds(broker, live, inquiry=inquiry, without=reasons)
            until = min(holds.until, until_sequence or holds.until)
            if not as_json:
                _print_holds(holds, until, done, until_sequence)
            if dry_run:
                _end_dry_run(holds, until, done, as_json=as_json)
                return
            refuse_silent(holds)
            with progress() as report:
                pruning = Pruning(broker, correlator.store, correlator.registry, report=partial(report, "pruning"))
                if until <= done:
                    removed = await pruning.remove()
                    _print_nothing(done, removed, holds, as_json=as_json)
                    return
                outcome = await pruning.prune(live, holds, until, reasons=reasons)
    _print_outcome(outcome, as_json=as_json)


def _print_holds(holds: Holds, until: int, done: int, until_sequence: int | None) -> None:
    from farandole.cli.output import console, printable, table

    before = f"; up to {done} it was pruned before" if done else ""
    if holds.silent:
        typer.echo(f"nothing may go while {holds.silent[0]} does not tell how far it has read{before}")
    else:
        typer.echo(f"what stands up to {until} may go{before}")
    made = table("HOLDS WHAT STANDS BEHIND", "WHO", "WHY")
    rows = [(hold.until, hold.what, hold.why) for hold in holds.found]
    rows += [(0, f"participant {name}", "did not tell how far it has read") for name in holds.silent]
    if until_sequence is not None:
        rows.append((until_sequence, "--until-sequence", "was given"))
    for sequence, who, why in sorted(rows)[:_MOST_HOLDS_SHOWN]:
        made.add_row(str(sequence), printable(who), printable(why))
    console().print(made)
    if (more := len(rows) - _MOST_HOLDS_SHOWN) > 0:
        typer.echo(f"and {more} more, which hold less")
    typer.echo(f"open: {holds.open_sagas} sagas, {holds.open_dead_letters} dead letters")


def _end_dry_run(holds: Holds, until: int, done: int, *, as_json: bool) -> None:
    from farandole.cli.output import print_json, print_next

    if as_json:
        print_json(_holds_json(holds, until, done))
        return
    first = holds.found[0]
    if holds.silent:
        print_next([f"farandole start {holds.silent[0]}"])
    elif first.what.startswith("saga "):
        print_next([f"farandole sagas diagnose {first.what.rpartition(' ')[2]}"])
    elif first.what.startswith("dead letter "):
        print_next([f"farandole deadletters show {first.what.rpartition(' ')[2]}"])
    elif until > done:
        print_next(["farandole prune"])


def _holds_json(holds: Holds, until: int, done: int) -> dict[str, Any]:
    return {
        "until": until,
        "prunedBefore": done,
        "holds": [{"what": hold.what, "until": hold.until, "why": hold.why} for hold in holds.found],
        "silent": holds.silent,
        "openSagas": holds.open_sagas,
        "openDeadLetters": holds.open_dead_letters,
    }


def _print_nothing(done: int, removed: int, holds: Holds, *, as_json: bool) -> None:
    from farandole.cli.output import print_json

    if as_json:
        print_json({**_holds_json(holds, done, done), "removed": removed})
        return
    left = f"; {removed} events that an interrupted run had left are removed" if removed else ""
    typer.echo(f"\nnothing more may go now{left}")


def _print_outcome(outcome: PrunedStream, *, as_json: bool) -> None:
    from farandole.cli.output import print_json, print_next

    if as_json:
        print_json({"until": outcome.until, "removed": outcome.removed, "snapshot": outcome.snapshot.id})
        return
    typer.echo(
        f"\nremoved {outcome.removed} events up to {outcome.until}; the snapshot {outcome.snapshot.id} stands for them "
        f"({outcome.snapshot.size} bytes), and was proven to"
    )
    print_next(["farandole replay"])


async def _forget(participant: str, reason: str) -> None:
    from farandole.broker.pruned import forget_reader
    from farandole.cli.live_correlator import connected_broker

    async with connected_broker() as broker:
        if not await forget_reader(broker, participant, reason):
            raise NotFoundError(
                f"the stream was never pruned, or {participant} is no participant: there is nothing to forget",
                reason="PARTICIPANT_NOT_FOUND",
            )
    typer.echo(f"{participant} may begin anew, with what the stream still holds")

"""`deadletters redrive` and `discard`: what an operator decides about what was given up on."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farandole.cli.correlator_client import AddressOption, JsonOption, correlator, saga_arguments
from farandole.cli.dead_letter_commands import GroupBy, get_dead_letter, groups_of, groups_table
from farandole.errors import InvalidArgumentError

if TYPE_CHECKING:
    import grpc

    from choreography.v1.dead_letter_pb2 import DeadLetter
    from choreography.v1.dead_letter_service_pb2 import DeadLetterProgress

_EVERY_OPEN_ONE = "state = OPEN"
_NOTHING = "no open dead letter matches"
_LONGEST_ACTOR = 256
_LINE_SECONDS = 1.0
"""Between two lines of progress where there is no terminal."""

IdArgument = Annotated[
    str, typer.Argument(metavar="[ID]", help="One dead letter, such as payments-17.", show_default=False)
]
MatchOption = Annotated[
    str | None,
    typer.Option("--filter", help="All open ones that match, as of `deadletters list`.", show_default=False),
]
AllOption = Annotated[bool, typer.Option("--all", help="All open ones.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; it is kept in the saga's history.")]
ActorOption = Annotated[
    str | None, typer.Option("--actor", help="Who decides it; else USER@HOST of this process.", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask, also where it is more than one.")]


@dataclass(frozen=True, slots=True)
class _Verb:
    name: str
    doing: str
    done: str
    of_one: str
    """What follows from it, of one dead letter."""
    of_many: str
    sagas: str
    """A filter for the sagas to look at then."""


_REDRIVE = _Verb(
    "redrive",
    "redriving",
    "redriven",
    "it is tried again at its place among its saga's events",
    "each is tried again at its place among its saga's events",
    "health = QUARANTINED",
)
_DISCARD = _Verb(
    "discard",
    "discarding",
    "discarded",
    "its saga goes on without it, and what it would have brought about is left to you",
    "their sagas go on without them, and what they would have brought about is left to you",
    "status = RUNNING OR status = COMPENSATING",
)


@dataclass(frozen=True, slots=True)
class _Decision:
    """What the command line says."""

    verb: _Verb
    dead_letter_id: str
    filter: str
    """Empty where one dead letter is named."""
    actor: str
    reason: str


def redrive(
    reason: ReasonOption,
    dead_letter_id: IdArgument = "",
    filter_: MatchOption = None,
    every: AllOption = False,
    actor: ActorOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Have dead letters tried again, each at its place among its saga's events."""
    filter_ = _one_of(dead_letter_id, filter_, every=every)
    decision = _Decision(_REDRIVE, dead_letter_id, filter_, actor or _this_user(), reason)
    _carry_out(decision, yes=yes, as_json=as_json, address=address)


def discard(
    reason: ReasonOption,
    dead_letter_id: IdArgument = "",
    filter_: MatchOption = None,
    every: AllOption = False,
    actor: ActorOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
) -> None:
    """Go on without dead letters; what their steps would have done is left to you."""
    filter_ = _one_of(dead_letter_id, filter_, every=every)
    decision = _Decision(_DISCARD, dead_letter_id, filter_, actor or _this_user(), reason)
    _carry_out(decision, yes=yes, as_json=as_json, address=address)


def _one_of(dead_letter_id: str, filter_: str | None, *, every: bool) -> str:
    """The filter that is meant; empty where one dead letter is named. Raises `InvalidArgumentError`."""
    if [bool(dead_letter_id), filter_ is not None, every].count(True) != 1:
        raise InvalidArgumentError("ID", "name one dead letter, or give --filter, or --all: exactly one of them")
    if filter_ is not None and not filter_.strip():
        raise InvalidArgumentError("--filter", "is empty; --all means every open one")
    return _EVERY_OPEN_ONE if every else filter_ or ""


def _this_user() -> str:
    """`USER@HOST`, as far as they are known."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:_LONGEST_ACTOR]


def _carry_out(decision: _Decision, *, yes: bool, as_json: bool, address: str | None) -> None:
    from farandole.cli.output import print_next

    with correlator(address) as channel:
        letter = None
        if decision.dead_letter_id:
            letter = get_dead_letter(channel, decision.dead_letter_id)
        elif not _agreed(decision, channel, yes=yes, as_json=as_json):
            return
        progress = _follow(decision, _call(decision, channel), as_json=as_json)
        if as_json:
            return
        typer.echo(_result(decision.verb, progress, letter))
        print_next(_next_commands(decision, channel, letter))


def _agreed(decision: _Decision, channel: grpc.Channel, *, yes: bool, as_json: bool) -> bool:
    """Whether it is to be done: not where nothing matches. Asks where it is more than one.

    Raises `InvalidArgumentError` where nobody can be asked, and `typer.Exit` where the answer is no.
    """
    from farandole.cli.output import console

    verb = decision.verb
    by_failure = (GroupBy.FAILURE,)
    groups = [group for group in groups_of(channel, decision.filter, by_failure) if group.open]
    count = sum(group.open for group in groups)
    if count == 0 and not as_json:
        typer.echo(_NOTHING)
        return False
    if count <= 1 or yes:
        return True
    if as_json or not sys.stdin.isatty():
        raise InvalidArgumentError("--yes", f"{count} open dead letters match; with it they are {verb.done} unasked")
    console().print(groups_table(groups, by_failure))
    if not typer.confirm(f"\n{verb.name.capitalize()} {count} dead letters?"):
        typer.echo("nothing was done")
        raise typer.Exit(1)
    return True


def _call(decision: _Decision, channel: grpc.Channel) -> Iterable[Any]:
    """The answers, as they come."""
    from choreography.v1 import dead_letter_service_pb2, dead_letter_service_pb2_grpc

    stub = dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
    what = {
        "dead_letter_id": decision.dead_letter_id,
        "filter": decision.filter,
        "actor": decision.actor,
        "reason": decision.reason,
    }
    answers: Iterable[Any]
    if decision.verb is _REDRIVE:
        answers = stub.RedriveDeadLetters(dead_letter_service_pb2.RedriveDeadLettersRequest(**what))
    else:
        answers = stub.DiscardDeadLetters(dead_letter_service_pb2.DiscardDeadLettersRequest(**what))
    return answers


def _follow(decision: _Decision, answers: Iterable[Any], *, as_json: bool) -> DeadLetterProgress:
    """The last progress, with all of it shown meanwhile. Where it breaks off, says how far it had come."""
    import grpc
    from google.protobuf.json_format import MessageToDict

    from choreography.v1 import dead_letter_service_pb2
    from farandole.cli.output import print_json_line
    from farandole.rpc.client import read_problem

    progress = dead_letter_service_pb2.DeadLetterProgress()
    with _shown_progress(decision, as_json=as_json) as tell:
        try:
            for answer in answers:
                progress = answer.progress
                if as_json:
                    print_json_line(MessageToDict(progress, always_print_fields_with_no_presence=True))
                tell(progress)
        except (grpc.RpcError, KeyboardInterrupt) as error:
            is_told = isinstance(error, grpc.RpcError) and "told" in read_problem(error).metadata
            if progress.matched and not is_told:
                how_far = _so_far(decision.verb, progress)
                sys.stderr.write(f"farandole: broken off: {how_far}. Call it again: none counts twice\n")
            raise
    return progress


@contextmanager
def _shown_progress(decision: _Decision, *, as_json: bool) -> Iterator[Any]:
    """A bar on a terminal; elsewhere now and then a line. Nothing for programs, and of a single dead letter."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from farandole.cli.output import console

    verb = decision.verb
    if as_json or decision.dead_letter_id:
        yield lambda _progress: None
    elif sys.stdout.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console()) as bar:
            task = bar.add_task(verb.doing, total=None)

            def draw(progress: DeadLetterProgress) -> None:
                bar.update(task, total=progress.matched, completed=progress.told + progress.passed_over)

            yield draw
    else:
        told_at = float("-inf")

        def tell(progress: DeadLetterProgress) -> None:
            nonlocal told_at
            if progress.told + progress.passed_over < progress.matched and time.monotonic() >= told_at + _LINE_SECONDS:
                told_at = time.monotonic()
                typer.echo(_so_far(verb, progress))

        yield tell


def _so_far(verb: _Verb, progress: DeadLetterProgress) -> str:
    return f"{progress.told} of {progress.matched} {verb.done}"


def _result(verb: _Verb, progress: DeadLetterProgress, letter: DeadLetter | None) -> str:
    said = []
    if not progress.matched:
        said.append(_NOTHING)
    if progress.told == 1:
        has_saga = letter is None or letter.definition
        said.append(f"1 dead letter is {verb.done}" + (f": {verb.of_one}" if has_saga else ""))
    elif progress.told:
        said.append(f"{progress.told} dead letters are {verb.done}: {verb.of_many}")
    if progress.passed_over:
        said.append(f"{progress.passed_over} passed over: closed, or given up on anew, before it was their turn")
    return "\n".join(said)


def _next_commands(decision: _Decision, channel: grpc.Channel, letter: DeadLetter | None) -> Iterator[str]:
    from farandole.cli.output import shell_word

    if letter is None:
        is_whole = decision.filter == _EVERY_OPEN_ONE
        still_open = decision.filter if is_whole else f"{decision.filter} AND {_EVERY_OPEN_ONE}"
        yield f"farandole deadletters list --group-by failure --filter {shell_word(still_open)}"
        yield f"farandole sagas list --filter {shell_word(decision.verb.sagas)}"
        return
    if letter.definition:
        saga = saga_arguments(channel, letter.saga_id, letter.definition)
        yield f"farandole sagas {'watch' if decision.verb is _REDRIVE else 'diagnose'} {saga}"
    yield f"farandole deadletters show {letter.dead_letter_id}"

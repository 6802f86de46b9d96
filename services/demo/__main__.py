"""`python -m services.demo`: orders on the running stack, and checks that all ends as it must and everything adds up.

Exits with 0 where it does, 1 where it does not or where sagas are stuck, 2 where the stack is not up.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import grpc
import typer
from rich.console import Console
from rich.markup import escape

from farandole import logs
from farandole.cli import output
from farandole.errors import FarandoleError
from farandole.rpc import describe
from farandole.stack.addresses import default_nats_url
from farandole.stack.planning import make_plan
from farandole.stack.stack_file import STACK_FILE
from orders.v1.order_events_pb2 import OrderCreated
from services.demo.books import Entry
from services.demo.clients import SERVICES, Addresses, StackDownError, StuckError, connected
from services.demo.outcomes import outcomes
from services.demo.plan import Channel, Placement, plan
from services.demo.progress import Progress
from services.demo.run import run
from services.demo.screen import Screen, show_books, show_outcomes

PASSED, FAILED, STACK_DOWN = 0, 1, 2


def main(
    orders: Annotated[int, typer.Option(min=0, max=99_999, help="How many orders to place.")] = 150,
    parcels: Annotated[int, typer.Option(min=0, max=99_999, help="How many parcels to order.")] = 150,
    failing: Annotated[int, typer.Option(min=0, max=100, help="How many of a hundred can't be fulfilled.")] = 20,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds after which to give up.")] = 180.0,
) -> None:
    """Places orders and parcels of all kinds on the running stack, watches their sagas to the end, and checks that
    each ends as it must and that the books balance.
    """
    logs.configure("demo", "error", "console")
    placements = plan(f"demo-{secrets.token_hex(3)}", orders=orders, parcels=parcels, failing_percent=failing)
    if not placements:
        raise typer.BadParameter("there is nothing to order", param_hint="--orders, --parcels")
    console = output.console()
    progress = Progress({placement.saga_id: placement.kind.definition for placement in placements})
    try:
        addresses = _addresses()
        books = asyncio.run(_run(console, addresses, placements, progress, timeout))
    except StackDownError as down:
        _say(console, f"[red]the stack is not up[/]\n{escape(str(down))}\n`make up` starts it, `make status` shows it")
        raise typer.Exit(STACK_DOWN) from None
    except FarandoleError as wrong:
        _say(console, f"[red]the demo can't start[/]\n{escape(str(wrong))}")
        raise typer.Exit(STACK_DOWN) from None
    except grpc.aio.AioRpcError as refused:
        _say(console, f"[red]FAILED[/]: a call was refused: {escape(describe(refused))}")
        raise typer.Exit(FAILED) from None
    except StuckError as stuck:
        _say_what_is_stuck(console, placements, progress, timeout, str(stuck))
        raise typer.Exit(FAILED) from None
    found = outcomes(placements, progress.status)
    _say(console, "what became of them")
    show_outcomes(console, found)
    _say(console, "the books")
    show_books(console, books)
    if not all(outcome.is_expected for outcome in found):
        _say(console, "[red]FAILED[/]: not every saga has ended as it must; `.venv/bin/farandole sagas list` has them")
        raise typer.Exit(FAILED)
    if not all(entry.balances for entry in books):
        _say(
            console, "[red]FAILED[/]: the books don't balance; `make logs` may say why, or did others order meanwhile?"
        )
        raise typer.Exit(FAILED)
    _say(console, f"[green]PASSED[/]: {len(placements)} sagas have ended as they must, and everything adds up")
    _say_what_next(console, addresses, placements)


def _addresses() -> Addresses:
    """Where the stack of the current directory is, with its ports moved as `FARANDOLE_PORT_*` says."""
    stack = make_plan(Path(STACK_FILE), os.environ)
    return Addresses(
        nats_url=default_nats_url(os.environ, Path.cwd()),
        services={service: stack.service(service).port.address for service in SERVICES},
    )


async def _run(
    console: Console,
    addresses: Addresses,
    placements: Sequence[Placement],
    progress: Progress,
    limit_seconds: float,
) -> list[Entry]:
    async with connected(addresses) as clients:
        if problems := await clients.problems():
            raise StackDownError(problems)
        bare = sum(placement.channel is Channel.BARE_EVENT for placement in placements)
        orders = sum(isinstance(placement.event, OrderCreated) for placement in placements)
        _say(
            console,
            f"placing {orders} orders and {len(placements) - orders} parcels, "
            f"{bare} of them as {Channel.BARE_EVENT.value}",
        )
        started = time.monotonic()
        try:
            with Screen(console, len(placements)) as screen:
                async with asyncio.timeout(limit_seconds):
                    return await run(
                        clients, placements, progress, lambda now: screen.show(now, time.monotonic() - started)
                    )
        except TimeoutError:
            raise StuckError(await clients.problems()) from None


def _say(console: Console, text: str) -> None:
    console.print(f"\n{text}", soft_wrap=True)


def _say_what_is_stuck(
    console: Console, placements: Sequence[Placement], progress: Progress, limit_seconds: float, problems: str
) -> None:
    _say(console, f"[red]FAILED[/]: given up after {limit_seconds:.0f} s, {progress.ended} sagas have ended")
    show_outcomes(console, outcomes(placements, progress.status))
    lines = [*progress.obstacles(), *problems.splitlines()]
    _say(console, escape("\n".join(lines) or "every saga has ended, but a service was too slow to say what it has"))
    _say(
        console,
        "is a service stopped? `make status`\n"
        "what do they say? `make logs`\n"
        "what does a saga wait for? `.venv/bin/farandole sagas diagnose SAGA_ID`",
    )


def _say_what_next(console: Console, addresses: Addresses, placements: Sequence[Placement]) -> None:
    saga_id = next((one.saga_id for one in placements if not one.kind.succeeds), placements[0].saga_id)
    _say(
        console,
        "what to try next\n"
        f"  .venv/bin/farandole sagas show {saga_id}\n"
        "  .venv/bin/farandole sagas list\n"
        f'  grpcurl -plaintext -d \'{{"saga_id":"{saga_id}"}}\' {addresses.services["correlator"]} '
        "choreography.v1.SagaService/GetSaga\n"
        "  make demo again, and meanwhile: .venv/bin/farandole stop payments; .venv/bin/farandole start payments",
    )


if __name__ == "__main__":
    typer.run(main)

"""The commands, by name."""

from __future__ import annotations

import typer

from farandole.cli import (
    backup_commands,
    dead_letter_commands,
    dead_letter_verbs,
    event_commands,
    health_commands,
    plugin_commands,
    prune_commands,
    replay_commands,
    saga_commands,
    stack_commands,
)

application = typer.Typer(
    name="farandole",
    help="Choreographed sagas on NATS JetStream.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

application.command("up")(stack_commands.up)
application.command("down")(stack_commands.down)
application.command("clean")(stack_commands.clean)
application.command("stop")(stack_commands.stop)
application.command("start")(stack_commands.start)
application.command("status")(stack_commands.status)
application.command("logs")(stack_commands.logs)
application.command("healthy")(health_commands.healthy)
application.command("correlator")(event_commands.correlator)
application.command("plugins")(plugin_commands.plugins)
application.command("provision")(event_commands.provision)
application.command("pub")(event_commands.pub)
application.command("replay")(replay_commands.replay)
application.command("prune")(prune_commands.prune)
application.command("backup")(backup_commands.backup)
application.command("restore")(backup_commands.restore)

sagas = typer.Typer(help="Sagas, as the correlator knows them.", no_args_is_help=True)
sagas.command("list")(saga_commands.list_sagas)
sagas.command("show")(saga_commands.show)
sagas.command("watch")(saga_commands.watch)
sagas.command("diagnose")(saga_commands.diagnose)
application.add_typer(sagas, name="sagas")

dead_letters = typer.Typer(help="What was given up on, why, and what to do about it.", no_args_is_help=True)
dead_letters.command("list")(dead_letter_commands.list_dead_letters)
dead_letters.command("show")(dead_letter_commands.show)
dead_letters.command("redrive")(dead_letter_verbs.redrive)
dead_letters.command("discard")(dead_letter_verbs.discard)
application.add_typer(dead_letters, name="deadletters")

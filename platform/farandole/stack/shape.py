"""The shape in which a stack runs: how many replicas, which database, one broker or a cluster (decision 0038).

The stack file says which services there are; the shape is what `farandole up` is told beside it. The data of one shape
are no data of another, so the shape is kept with them, and what `up` is not told is as they have it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal

from farandole.errors import ConfigurationError, Fault, StackError
from farandole.stack.home import Home

REPLICAS_VARIABLE = "FARANDOLE_STACK_REPLICAS"
DATABASE_VARIABLE = "FARANDOLE_STACK_DATABASE"
NATS_VARIABLE = "FARANDOLE_STACK_NATS"

MOST_REPLICAS = 16
"""As many as there are partitions: more would have nothing to do."""

DatabaseKind = Literal["sqlite", "postgres"]
NatsKind = Literal["single", "cluster"]


@dataclass(frozen=True, slots=True)
class Shape:
    """How a stack runs. Raises `ConfigurationError` where it can't run so."""

    replicas: int = 1
    """Of each service, unless the stack file says another number for one."""
    database: DatabaseKind = "sqlite"
    nats: NatsKind = "single"

    def __post_init__(self) -> None:
        if not 1 <= self.replicas <= MOST_REPLICAS:
            raise ConfigurationError([Fault("--replicas", f"is from 1 to {MOST_REPLICAS}, not {self.replicas}")])
        if self.replicas > 1 and self.database == "sqlite":
            raise ConfigurationError([several_need_postgres("--replicas")])

    @property
    def command(self) -> str:
        """What brings a stack up in it."""
        usual = Shape()
        options = {"--replicas": self.replicas, "--database": self.database, "--nats": self.nats}
        defaults = {"--replicas": usual.replicas, "--database": usual.database, "--nats": usual.nats}
        return " ".join(["farandole up", *(f"{o} {v}" for o, v in options.items() if v != defaults[o])])

    def __str__(self) -> str:
        replicas = "one process a service" if self.replicas == 1 else f"{self.replicas} replicas of each service"
        database = {"sqlite": "SQLite", "postgres": "PostgreSQL"}[self.database]
        nats = {"single": "one nats-server", "cluster": "a cluster of three nats-servers"}[self.nats]
        return f"{replicas}, {database}, {nats}"


def several_need_postgres(where: str) -> Fault:
    """What is wrong with several replicas on SQLite, and the remedy."""
    return Fault(
        where,
        "several replicas share one database, and SQLite serves one process: use PostgreSQL by `--database postgres` "
        "(`make up REPLICAS=3 DATABASE=postgres`)",
    )


def kept_shape(home: Home) -> Shape | None:
    """The shape of the data that a home has; None where it has none. Raises `StackError` where that can't be read."""
    try:
        kept = json.loads(home.shape.read_text(encoding="utf-8"))
        return Shape(replicas=kept["replicas"], database=kept["database"], nats=kept["nats"])
    except FileNotFoundError:
        # nats-server makes this directory; where it is, the data are from before there were shapes
        return Shape() if (home.broker_store() / "jetstream").exists() else None
    except (OSError, ValueError, KeyError, TypeError, ConfigurationError) as error:
        raise StackError(f"{home.shape} can't be read: {error}; it says how the data beside it were made") from error


def asked_shape(home: Home, replicas: int | None, database: DatabaseKind | None, nats: NatsKind | None) -> Shape:
    """The shape that is asked for: what is None is as the home's data have it, else as usual.

    Where what is asked for is of another database or another broker than the data, nothing of their shape counts, and
    `keep_shape` refuses it. Raises as `Shape` and `kept_shape` do.
    """
    kept = kept_shape(home) or Shape()
    base = kept if database in (None, kept.database) and nats in (None, kept.nats) else Shape()
    return Shape(replicas or base.replicas, database or base.database, nats or base.nats)


def keep_shape(home: Home, shape: Shape) -> None:
    """Remembers the shape with the data.

    Raises `StackError` where there are data of another database or another broker: they would be left behind, and
    what they hold would not be known any more. The number of replicas may change.
    """
    before = kept_shape(home)
    if before is not None and (before.database, before.nats) != (shape.database, shape.nats):
        raise StackError(
            f"the data in {home.data} are those of {before}, and not of {shape}: `{before.command}` goes on with them; "
            "`make clean` removes them; FARANDOLE_HOME names another place"
        )
    home.shape.write_text(json.dumps(asdict(shape)) + "\n", encoding="utf-8")

"""Leases in a database keep every rule of their port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from farandole.database import Database
from farandole.leases import Leases
from farandole.sql_leases import LeaseTables, SqlLeases
from farandole.testing import LeasesConformance
from farandole.testing.leases_conformance import TIME_TO_LIVE_SECONDS


class TestSqliteLeases(LeasesConformance):
    @pytest.fixture
    async def leases(self, tmp_path: Path) -> AsyncIterator[Leases]:
        database = Database(f"sqlite:///{tmp_path}/leases.db")
        metadata = sa.MetaData()
        tables = LeaseTables(metadata)
        await database.create(metadata, if_earlier="")
        yield SqlLeases(database, tables, time_to_live_seconds=TIME_TO_LIVE_SECONDS)
        await database.close()

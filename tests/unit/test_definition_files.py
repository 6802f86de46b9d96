"""Definitions from YAML: what is read, and how each fault is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from farandole.definition_files import MAX_FILE_BYTES, load_definitions
from farandole.errors import DefinitionError
from tests.unit.saga_histories import ORDER_FULFILMENT, REGISTRY, ROOT

ORDER_YAML = (ROOT / "services" / "correlator" / "sagas" / "order-fulfilment.yaml").read_text()


def line_of(text: str, needle: str, number: int = 1) -> int:
    """The line of the n-th occurrence of the needle."""
    return [at for at, line in enumerate(text.splitlines(), start=1) if needle in line][number - 1]


def refused(directory: Path) -> dict[str, str]:
    """The reasons for which a directory is refused, by file name and line."""
    with pytest.raises(DefinitionError) as error:
        load_definitions(directory, REGISTRY)
    return {fault.where.removeprefix(f"{directory}/"): fault.reason for fault in error.value.faults}


def refused_text(directory: Path, text: str | bytes) -> dict[str, str]:
    """The reasons for which one file is refused."""
    (directory / "saga.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return refused(directory)


@pytest.mark.parametrize(
    "text",
    [
        ORDER_YAML,
        ORDER_YAML.replace("kind: PIVOT", "kind: STEP_KIND_PIVOT"),
        ORDER_YAML.replace("initiating_event", "initiatingEvent"),
        ORDER_YAML.replace("kind: PIVOT", "kind: 2"),
        ORDER_YAML.replace('"60s"', "60s").replace("version: 1", 'version: "1"'),
        ORDER_YAML.replace("version: 1\n", "version: 1\n", 1) + "\n---\n",
        "\ufeff" + ORDER_YAML,
        ORDER_YAML.replace('"1800s"', '&whole "1800s"'),
    ],
)
def test_each_way_to_write_it_is_the_same_definition(tmp_path: Path, text: str) -> None:
    (tmp_path / "saga.yml").write_text(text, encoding="utf-8")
    assert load_definitions(tmp_path, REGISTRY) == (ORDER_FULFILMENT,)


def test_files_and_documents_are_ordered_by_name_and_version(tmp_path: Path) -> None:
    second = ORDER_YAML.replace("version: 1", "version: 2")
    (tmp_path / "a.yaml").write_text(f"{second}\n---\n{ORDER_YAML}")
    (tmp_path / "b.yml").write_text(ORDER_YAML.replace("name: order-fulfilment", "name: another"))
    (tmp_path / "notes.txt").write_text("not a definition")
    (tmp_path / ".hidden.yaml").write_text("not: read")
    found = load_definitions(tmp_path, REGISTRY)
    assert [str(definition) for definition in found] == [
        "another version 1",
        "order-fulfilment version 1",
        "order-fulfilment version 2",
    ]


def test_a_missing_and_an_empty_directory_are_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DefinitionError, match="is no directory; set FARANDOLE_SAGAS"):
        load_definitions(tmp_path / "nowhere", REGISTRY)
    with pytest.raises(DefinitionError, match="holds no saga definition; add one as"):
        load_definitions(tmp_path, REGISTRY)


@pytest.mark.parametrize(
    ("old", "new", "needle", "reason"),
    [
        pytest.param("deadline:", "dedline:", "dedline:", "field; did you mean deadline?", id="unknown field"),
        pytest.param(
            "version: 1", "version: 1\nversion: 2", "version: 2", "stands here a second time", id="duplicate key"
        ),
        pytest.param("kind: PIVOT", "kind: PIVOTAL", "PIVOTAL", "is one of COMPENSATABLE, PIVOT", id="enumeration"),
        pytest.param('"1800s"', "1800", "1800", "in seconds such as \"60s\", not '1800'", id="number for a duration"),
        pytest.param('"1800s"', "30:00", "30:00", "such as \"60s\", not '30:00'", id="sexagesimal"),
        pytest.param(
            "version: 1", "version: one", "version: one", "version is a whole number, not 'one'", id="text for a number"
        ),
        pytest.param("version: 1", "version: true", "true", "version is a whole number", id="truth for a number"),
        pytest.param("version: 1", "version: 1.5", "1.5", "version is a whole number", id="fraction for a number"),
        pytest.param("participant: payments", "participant: 5", "participant: 5", "is a text, not '5'", id="number"),
        pytest.param("participant: payments", "participant: ~", "participant: ~", "has no value", id="null"),
        pytest.param(
            "participant: payments", "participant: [a]", "[a]", "steps[2].participant takes one value", id="list"
        ),
        pytest.param(
            "triggers: [inventory.v1.ItemsReserved]",
            "triggers: inventory.v1.ItemsReserved",
            "triggers: inventory.v1.ItemsReserved",
            "steps[2].triggers takes a list",
            id="one for a list",
        ),
        pytest.param(
            "triggers: [inventory.v1.ItemsReserved]",
            "triggers: [inventory.v1.ItemReserved]",
            "inventory.v1.ItemReserved]",
            "steps[2].triggers[0]: inventory.v1.ItemReserved is no known event type; did you mean",
            id="unknown type",
        ),
        pytest.param(
            "participant: shipping\n",
            "participant: !!python/object/apply:os.getcwd []\n",
            "!!python",
            "steps[3].participant takes one value",
            id="object",
        ),
        pytest.param(
            "participant: shipping\n", 'participant: !!python/name:os.system ""\n', "!!python", "is a text", id="name"
        ),
    ],
)
def test_a_fault_is_told_with_its_line(tmp_path: Path, old: str, new: str, needle: str, reason: str) -> None:
    text = ORDER_YAML.replace(old, new, 1)
    number = line_of(text, needle)
    faults = refused_text(tmp_path, text)
    assert reason in faults[f"saga.yaml:{number}"]


def test_what_is_missing_is_told_with_the_line_of_what_lacks_it(tmp_path: Path) -> None:
    text = ORDER_YAML.replace("    success: payments.v1.PaymentProcessed\n", "")
    faults = refused_text(tmp_path, text)
    assert faults[f"saga.yaml:{line_of(text, 'name: take-payment')}"].startswith("steps[2].success: ")


def test_every_fault_of_every_file_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ORDER_YAML.replace("version: 1", "version: one\nnam: x"))
    (tmp_path / "b.yaml").write_text("name: [\n")
    (tmp_path / "c.yaml").write_text(ORDER_YAML.replace("commit_event: shipping", "commit_event: shiping"))
    faults = refused(tmp_path)
    assert len([where for where in faults if where.startswith("a.yaml:")]) == 2
    assert {where.partition(":")[0] for where in faults} == {"a.yaml", "b.yaml", "c.yaml"}


def test_the_same_name_and_version_twice_names_both(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(ORDER_YAML)
    (tmp_path / "b.yaml").write_text(ORDER_YAML)
    number = line_of(ORDER_YAML, "version: 1")
    faults = refused(tmp_path)
    assert f"{tmp_path}/a.yaml:{number}" in faults[f"b.yaml:{number}"]


ALIASES = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
STEPS = "steps:\n- &step\n  triggers: [" + "a.v1.B, " * 500 + "]\n" + "- *step\n" * 500
SELF = "steps: &steps\n- compensation: *steps\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(ALIASES, "no such field", id="aliases of aliases"),
        pytest.param(STEPS, "has more than 20000 values", id="aliases of steps"),
        pytest.param(SELF, "takes the fields of", id="alias that holds itself"),
        pytest.param("[" * 100_000, "is nested too deeply", id="nesting"),
        pytest.param("#" * (MAX_FILE_BYTES + 1), f"has more than {MAX_FILE_BYTES} bytes", id="size"),
        pytest.param("name: &a [*b]", "is not YAML: found undefined alias", id="undefined alias"),
        pytest.param(b"name: a\nversion: \xff", "is not UTF-8", id="encoding"),
        pytest.param("name: \x00", "is not YAML", id="control character"),
        pytest.param("", "holds no definition", id="empty"),
        pytest.param("# nothing\n", "holds no definition", id="only a comment"),
        pytest.param("- a\n- b\n", "takes the fields of choreography.v1.SagaDefinition", id="list"),
        pytest.param("hello", "takes the fields of choreography.v1.SagaDefinition", id="text"),
        pytest.param("? [a]\n: b\n", "no such field", id="key that is no text"),
        pytest.param("<<: {name: a}\n", "no such field", id="merge key"),
    ],
)
def test_a_hostile_or_hopeless_file_is_only_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    faults = refused_text(tmp_path, content)
    assert any(reason in told for told in faults.values()), faults


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    assert "can't be read" in refused(tmp_path)["folder.yaml"]

"""Saga definitions from YAML files: ProtoJSON-shaped documents of `choreography.v1.SagaDefinition`.

The files come from people: every fault in every file is reported at once, with its line and the remedy. Only plain
YAML is read (no tags, no objects), within limits, so that a hostile file costs no more than a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml
from google.protobuf import duration_pb2, json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from choreography.v1 import saga_definition_pb2
from farandole.definition import Definition, validate
from farandole.errors import DefinitionError, Fault
from farandole.nearest import did_you_mean
from farandole.registry import Registry

MAX_FILE_BYTES = 1024 * 1024
MAX_VALUES = 20_000
"""Of one file, with what its aliases repeat: a definition of 100 steps has about 2,000."""

_NULL = "tag:yaml.org,2002:null"
_SUFFIXES = (".yaml", ".yml")


def load_definitions(directory: Path, registry: Registry) -> tuple[Definition, ...]:
    """The definitions in all `*.yaml` and `*.yml` of a directory (not of folders in it), by name and version.

    A file may hold several documents. Raises `DefinitionError` with every fault: an unreadable file, a field that does
    not exist, what `validate` finds, the same name and version twice, or no definition at all.
    """
    if not directory.is_dir():
        raise DefinitionError(
            [Fault(str(directory), "is no directory; set FARANDOLE_SAGAS to one that holds saga definitions (*.yaml)")]
        )
    files = sorted(file for file in directory.iterdir() if file.suffix in _SUFFIXES and not file.name.startswith("."))
    faults: list[Fault] = []
    definitions: dict[tuple[str, int], Definition] = {}
    places: dict[tuple[str, int], str] = {}
    for file in files:
        for document in _documents(file, faults):
            definition = _definition(document, registry, faults)
            if definition is None:
                continue
            identity = (definition.name, definition.version)
            where = document.where("version")
            if identity in definitions:
                reason = f"{definition} is defined at {places[identity]} already; raise the version or remove one"
                faults.append(Fault(where, reason))
            else:
                definitions[identity], places[identity] = definition, where
    if faults:
        raise DefinitionError(faults)
    if not definitions:
        raise DefinitionError(
            [
                Fault(
                    str(directory), "holds no saga definition; add one as *.yaml, or set FARANDOLE_SAGAS to another one"
                )
            ]
        )
    return tuple(definitions[identity] for identity in sorted(definitions))


@dataclass
class _Document:
    """One YAML document, on its way to a message."""

    file: Path
    root: yaml.Node
    faults: list[Fault]
    lines: dict[str, int] = field(default_factory=dict)
    """The line of each field, by its path."""
    values: int = 0
    """How many values have been read, aliases expanded."""

    def where(self, path: str) -> str:
        """`file:line` of the field, or of the nearest thing that holds it where it is not there."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return f"{self.file}:{self.lines.get(path, self.root.start_mark.line + 1)}"

    def refuse(self, node: yaml.Node, reason: str) -> None:
        self.faults.append(Fault(f"{self.file}:{node.start_mark.line + 1}", reason))


class _TooManyValuesError(Exception):
    """A document has more values than `MAX_VALUES`, or holds itself."""


def _documents(file: Path, faults: list[Fault]) -> Iterator[_Document]:
    """The documents of one file that hold anything; none, with the faults added, where it can't be read."""
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        faults.append(Fault(str(file), f"can't be read: {error.strerror or error}"))
        return
    if len(data) > MAX_FILE_BYTES:
        faults.append(Fault(str(file), f"has more than {MAX_FILE_BYTES} bytes; a definition has a few thousand"))
        return
    try:
        roots = list(yaml.compose_all(data.decode("utf-8-sig"), Loader=yaml.SafeLoader))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        faults.append(Fault(f"{file}:{line}", "is not UTF-8"))
        return
    except RecursionError:
        faults.append(Fault(str(file), "is nested too deeply"))
        return
    except yaml.YAMLError as error:
        faults.append(_syntax_fault(file, error))
        return
    filled = [root for root in roots if root.tag != _NULL]
    if not filled:
        faults.append(Fault(f"{file}:1", "holds no definition"))
    for root in filled:
        yield _Document(file, root, faults)


def _syntax_fault(file: Path, error: yaml.YAMLError) -> Fault:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    return Fault(f"{file}:{mark.line + 1 if mark else 1}", f"is not YAML: {reason}")


def _definition(document: _Document, registry: Registry, faults: list[Fault]) -> Definition | None:
    """The definition in a document; None, with the faults added, where it is refused."""
    before = len(faults)
    message = saga_definition_pb2.SagaDefinition()
    try:
        content = _message_content(document, document.root, message, "")
    except _TooManyValuesError:
        document.refuse(document.root, f"has more than {MAX_VALUES} values, or an alias that holds itself")
        return None
    if len(faults) > before:
        return None
    json_format.ParseDict(content, message)
    for problem in validate(message, registry.types.keys()):
        path = f"{problem.path}: " if problem.path else ""
        faults.append(Fault(document.where(problem.path), path + problem.reason))
    return Definition.of_message(message) if len(faults) == before else None


def _message_content(document: _Document, node: yaml.Node, message: Message, path: str) -> dict[str, object]:
    """What a mapping holds for a message, as `ParseDict` takes it; faults go to the document."""
    descriptor = message.DESCRIPTOR
    if not isinstance(node, yaml.MappingNode):
        document.refuse(node, f"{path or 'a document'} takes the fields of {descriptor.full_name}, as `name: value`")
        return {}
    _count(document)
    fields = {n: cast("FieldDescriptor", f) for f in descriptor.fields for n in (f.name, f.camelcase_name)}
    content: dict[str, object] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "?"
        known = fields.get(key)
        if known is None:
            guess = did_you_mean(key, descriptor.fields_by_name)
            document.refuse(key_node, f"{_joined(path, key)}: {descriptor.full_name} has no such field{guess}")
            continue
        at = _joined(path, known.name)
        if known.name in content:
            document.refuse(key_node, f"{at} stands here a second time; it is at line {document.lines[at]} already")
            continue
        document.lines[at] = key_node.start_mark.line + 1
        content[known.name] = _field_content(document, value_node, message, known, at)
    return content


def _field_content(document: _Document, node: yaml.Node, message: Message, known: FieldDescriptor, path: str) -> object:
    if not known.is_repeated:
        return _value(document, node, message, known, path)
    if not isinstance(node, yaml.SequenceNode):
        document.refuse(node, f"{path} takes a list")
        return []
    _count(document)
    values = []
    for number, item in enumerate(node.value):
        at = f"{path}[{number}]"
        document.lines[at] = item.start_mark.line + 1
        values.append(_value(document, item, message, known, at))
    return values


def _value(document: _Document, node: yaml.Node, message: Message, known: FieldDescriptor, path: str) -> object:
    """One value of a field; None, with the fault added, where it is refused."""
    _count(document)
    is_duration = (
        known.message_type is not None and known.message_type.full_name == duration_pb2.Duration.DESCRIPTOR.full_name
    )
    if known.message_type is not None and not is_duration:
        parent = getattr(type(message)(), known.name)
        child = parent.add() if known.is_repeated else parent
        return _message_content(document, node, child, path)
    if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
        document.refuse(node, f"{path} {'has no value' if isinstance(node, yaml.ScalarNode) else 'takes one value'}")
        return None
    try:
        value = yaml.SafeLoader("").construct_object(node)
        if known.enum_type is not None:
            value = _enum_name(known.enum_type, value)
        json_format.ParseDict({known.name: [value] if known.is_repeated else value}, type(message)())
    except (yaml.YAMLError, json_format.Error, ValueError, TypeError, AttributeError):
        document.refuse(node, f"{path} {_expected(known)}, not {node.value!r}")
        return None
    return value


def _enum_name(enum_type: EnumDescriptor, value: object) -> object:
    """The full name of an enumeration's value that was given by its short name, such as `PIVOT`."""
    short_names = _short_names(enum_type)
    return short_names.get(value, value) if isinstance(value, str) else value


def _short_names(enum_type: EnumDescriptor) -> dict[str, str]:
    prefix = f"{enum_type.values_by_number[0].name.removesuffix('UNSPECIFIED')}"
    return {name.removeprefix(prefix): name for name in enum_type.values_by_name}


def _expected(known: FieldDescriptor) -> str:
    """What a field takes, in words."""
    if known.enum_type is not None:
        names = [name for name in _short_names(known.enum_type) if name != "UNSPECIFIED"]
        return f"is one of {', '.join(names)}"
    if known.message_type is not None:
        return 'is a duration in seconds such as "60s"'
    return "is a text" if known.type == FieldDescriptor.TYPE_STRING else "is a whole number"


def _count(document: _Document) -> None:
    document.values += 1
    if document.values > MAX_VALUES:
        raise _TooManyValuesError


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name

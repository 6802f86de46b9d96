"""What a handler raised, as a text that may be shown: without the values that its events mark as not to be shown."""

from __future__ import annotations

import base64
import json
import re
import traceback
from collections.abc import Iterator
from urllib.parse import quote

from google.protobuf import text_encoding

from farandole.envelope import Event
from farandole.participant.crashes import CrashedError
from farandole.participant.outcomes import DependencyDown, Reject, Snooze
from farandole.redaction import REDACTED

MAX_TEXT = 2048
"""Characters of a text, as `choreography.v1.DeadLetterRecorded.detail` may have."""
_SHORT = 4
"""A value of fewer characters is blanked only where it stands alone: it would be found in every other word."""


def text_of(error: BaseException, *events: Event) -> str:
    """What went wrong with events, in one text: a rejection's reason, or the kind of error and what it says."""
    if isinstance(error, Reject):
        text = _said_by(error) or "rejected without a reason"
    elif isinstance(error, CrashedError | Snooze | DependencyDown):
        text = _said_by(error)
    else:
        text = ": ".join(filter(None, (type(error).__name__, _said_by(error))))
    return blanked(text, *events)[:MAX_TEXT]


def traceback_of(error: BaseException, *events: Event) -> str:
    """Where it was raised, for the log."""
    return blanked("".join(traceback.format_exception(error)), *events)


def blanked(text: str, *events: Event) -> str:
    """A text in which every value that the events hide reads `[REDACTED]`, however it is written there."""
    hidden = (value for event in events for value in event.event_type.redactor.hidden_values(event.body))
    patterns = {pattern for value in hidden for pattern in _patterns(value)}
    if patterns:
        longest_first = sorted(patterns, key=len, reverse=True)
        text = re.sub("|".join(longest_first), REDACTED, text, flags=re.IGNORECASE)
    return text.encode(errors="replace").decode()


def _said_by(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001 - a handler's exception may do anything; it must not stop the others
        return f"(its text can't be made: {type(broken).__name__})"


def _patterns(value: str | bytes | float) -> Iterator[str]:
    alone = not isinstance(value, str | bytes) or len(value) < _SHORT
    if isinstance(value, bool):
        return  # says nothing, and stands in many texts
    for written in set(_written(value)):
        if written.strip():
            pattern = re.escape(written)
            yield rf"(?<!\w){pattern}(?!\w)" if alone else pattern


def _written(value: str | bytes | float) -> Iterator[str]:
    """How a value may stand in a text: plain, or as Python, JSON, Protobuf's text format or a URL write it."""
    match value:
        case str():
            yield value
            yield value.strip()
            yield repr(value)[1:-1]
            yield json.dumps(value)[1:-1]
            yield json.dumps(value, ensure_ascii=False)[1:-1]
            yield text_encoding.CEscape(value.encode(), as_utf8=False)
            yield text_encoding.CEscape(value.encode(), as_utf8=True)
            yield quote(value, safe="")
        case bytes():
            yield repr(value)[2:-1]
            yield value.hex()
            yield base64.b64encode(value).decode()
            yield text_encoding.CEscape(value, as_utf8=False)
            yield value.decode(errors="replace")
        case _:
            yield str(value)

"""Reading a NATS header block, without loss and without ever raising."""

from __future__ import annotations

from farandole.envelope import MALFORMED_HEADERS

STATUS = "Status"
DESCRIPTION = "Description"

_VERSION = b"NATS/1.0"


def parse_headers(block: bytes) -> dict[str, str] | None:
    r"""The headers of a block `NATS/1.0[ STATUS[ DESCRIPTION]]\r\nName: value\r\n…`; None for an empty block.

    An inline status becomes the headers `Status` and `Description`. A block that can't be read keeps what can, and
    says what is wrong under `MALFORMED_HEADERS`: whoever needs an exact header must refuse such a message, since a
    header that got lost could have been its id.
    """
    if not block:
        return None
    headers: dict[str, str] = {}
    first, _, rest = block.partition(b"\r\n")
    status = first[len(_VERSION) :].strip()
    if status:
        code, _, description = status.partition(b" ")
        headers[STATUS] = code.decode("ascii", "replace")
        if description:
            headers[DESCRIPTION] = description.strip().decode("utf-8", "replace")
    for line in rest.split(b"\r\n"):
        if not line:
            continue
        name, separator, value = line.partition(b":")
        try:
            if not separator or not name or name.strip() != name:
                raise ValueError("is not `Name: value`")  # noqa: TRY301 - one place that says what is wrong
            headers[name.decode("ascii")] = value.strip().decode()
        except ValueError as error:
            headers[MALFORMED_HEADERS] = f"a header line can't be read ({error}): {line[:64]!r}"
    return headers or None

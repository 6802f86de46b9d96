"""The error codes of JetStream that are told apart, as the server has them (nats-server, `server/errors.json`).

A `BrokerError` has one in its `code`. That a race was lost, which layers below the broker ask about too, it says
itself: `BrokerError.is_conflict`.
"""

from __future__ import annotations

NO_SUITABLE_PEERS = 10005
"""Of a cluster too few servers are known to be there, as just after their start."""
CONSUMER_NOT_FOUND = 10014
NO_MESSAGE_FOUND = 10037
"""The stream has no such message, by its sequence or its subject."""
NO_SUCH_SEQUENCE = 10043
"""There is nothing to delete at that sequence."""
MESSAGE_TOO_LARGE = 10054
"""The message is above the stream's `max_msg_size`."""
STREAM_NAME_IN_USE = 10058
"""There is a stream of that name with another configuration."""
STREAM_NOT_FOUND = 10059
DUPLICATE_IN_PROCESS = 10158
"""What was published before under the same message id is not yet agreed on."""

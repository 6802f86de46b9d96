"""The NATS JetStream adapter: connection, streams, pipelined publishing, and ordered consuming."""

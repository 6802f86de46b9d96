"""Participants: services that take part in sagas by consuming and publishing events."""

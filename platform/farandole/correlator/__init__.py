"""The correlator: watches all events, records each saga's progress, and answers how it stands."""

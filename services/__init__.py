"""The sample services, the correlator's thin service, and the demo. They share contracts, but no code."""

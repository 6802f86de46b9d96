"""What a process tells of itself while it works: traces by OpenTelemetry, metrics for Prometheus.

Both are off unless they are asked for, and then neither library is imported (`start`). Whoever works tells a
`Telemetry`; where all is off that is `NO_TELEMETRY`, whose calls do nothing. Decisions 0045 and 0046.
"""

from farandole.telemetry.port import NO_ACCOUNT, NO_TELEMETRY, Account, Telemetry

__all__ = ["NO_ACCOUNT", "NO_TELEMETRY", "Account", "Telemetry"]

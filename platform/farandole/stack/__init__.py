"""The embedded stack: a real nats-server and a team's services on one machine, kept running by a detached supervisor.

A stack file (`farandole.yaml`) names the services; the library knows none of them.
"""

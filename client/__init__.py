"""The Python client and the ``pruneloop`` command line."""

from client.api import PruneloopClient
from client.front import MeasuredFront
from client.session import Client, JobHandle

__all__ = ["Client", "JobHandle", "MeasuredFront", "PruneloopClient"]

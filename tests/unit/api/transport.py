"""The transport of the tests is the product's."""

from client.in_process import AppTransport

__all__ = ["AppTransport"]

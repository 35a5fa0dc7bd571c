"""Clients of the service: over the control socket, over HTTP (`http`), and by a ring (`ring`)."""

from sealsvc.client.socket import AsyncClient, Client, Reply, alone, socket_path

__all__ = ["AsyncClient", "Client", "Reply", "alone", "socket_path"]

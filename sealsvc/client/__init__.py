"""Clients of the service: over the control socket, over HTTP (`http`), and by a ring (`ring`)."""

from sealsvc.client.async_socket import AsyncClient
from sealsvc.client.datagrams import Reply, alone, socket_path
from sealsvc.client.socket import Client
from sealsvc.protocol.events import Event

__all__ = ["AsyncClient", "Client", "Event", "Reply", "alone", "socket_path"]

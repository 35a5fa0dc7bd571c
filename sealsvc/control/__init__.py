"""The control socket: framing, connections, the server."""

"""The service: the composition root, the router, and the handlers of requests."""

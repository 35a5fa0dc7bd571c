"""The service: composition root, router, and what operators ask."""

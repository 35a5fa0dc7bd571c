"""sealsvc: revocable extent-map seals on persistent-memory and other files."""

__version__ = "0.1.0"

"""sealsvc: revocable extent-map seals on persistent-memory and other files."""

from sealsvc import moved

__version__ = "0.1.0"

moved.install()

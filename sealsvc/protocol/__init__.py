"""The control protocol: every message, and how it is encoded."""

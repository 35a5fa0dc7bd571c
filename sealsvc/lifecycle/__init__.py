"""The life of a seal: grant, recall, return, fence, journal, recovery."""

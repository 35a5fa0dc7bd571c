"""What takes longer than a request should."""

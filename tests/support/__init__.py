"""What tests of several folders share: file systems, the service as a process, waiting."""

"""What the operating system is asked: files, mounts, processes; and the C core."""

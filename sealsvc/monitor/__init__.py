"""What enforcement cannot see: drift of maps, media errors, mounts, ends of holders."""

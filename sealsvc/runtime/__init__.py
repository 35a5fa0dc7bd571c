"""Infrastructure of a long-lived process: clock, tasks, threads, limits, logs, configuration."""

"""What a server counts, times and traces, for the tools of who operates it."""

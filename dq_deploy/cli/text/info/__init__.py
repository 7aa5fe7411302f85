"""What `dq-info` shows: a record, an engine file, a plan, and how the native engine would run a record."""

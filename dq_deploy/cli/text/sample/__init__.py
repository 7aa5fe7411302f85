"""What `dq-sample` takes and says."""

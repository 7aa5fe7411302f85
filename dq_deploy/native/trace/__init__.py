"""From a record to the operations of one call."""

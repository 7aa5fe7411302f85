"""The report: its values, its sentences and its pages."""

"""What every layer computes, for the proof."""

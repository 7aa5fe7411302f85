"""What differs between classes of denoisers."""

"""What is tuned for a processor."""

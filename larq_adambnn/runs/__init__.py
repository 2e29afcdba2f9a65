"""What a run is and what happens to it: its settings, its directory, its training."""

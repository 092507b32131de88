"""Face-embedding networks, built by name."""

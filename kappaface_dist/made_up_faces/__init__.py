"""The embedded dataset: rendered faces of made-up people."""

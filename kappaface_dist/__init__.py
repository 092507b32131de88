"""Distributed face-recognition training: sharded classifier and KappaFace margin."""

"""The public place of the embedder, for a user's own code; it lives in `models/embedder.py`."""

from kappaface_dist.models.embedder import Embedder, load_embedder

__all__ = ["Embedder", "load_embedder"]

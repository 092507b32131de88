"""From images to embeddings: computing, storing, and their files."""

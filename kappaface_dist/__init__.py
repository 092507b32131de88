"""Distributed face-recognition training: sharded classifier (Partial FC), KappaFace margin.

For code of your own:

- `kappaface_dist.head`: `PartialFC`, the classifier in shards, and the margins (`KappaFace`,
  `ArcFace` and others), on any number of processes, with or without a process group.
- `kappaface_dist.embedder`: `load_embedder`, a trained network that turns faces into embeddings and
  compares them.
- `kappaface_dist.backbones`: `build_backbone`, the networks by name.

For the command line: `kappaface` (or `python -m kappaface_dist`) lists and runs the programs, and
`torchrun --nproc_per_node=8 -m kappaface_dist.train CONFIG` trains from any folder.

Nothing is imported here, so that `import kappaface_dist` costs nothing.
"""

__version__ = "0.1.0"

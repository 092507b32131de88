"""The state of a run on disk: sharded tensors, folders of checkpoints, other numbers of ranks."""

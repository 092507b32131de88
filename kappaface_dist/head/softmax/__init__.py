"""The exact margin softmax over all classes, in two passes over chunks of the shard."""

"""The shuffled stream of images: read, decoded, augmented, in batches."""

"""What a training leaves behind: saved, exported, imported, opened."""

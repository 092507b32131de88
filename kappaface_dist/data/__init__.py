"""Datasets: RecordIO and folders, the shuffled image stream, decoding."""

"""Read and write RecordIO files without MXNet."""

from kappaface_dist.data.recordio_writer import RecordWriter

__all__ = ["RecordWriter"]

"""What a job will take: planned from its configuration, rehearsed on one rank, measured."""

"""The run: its parts, its loop, its log, and what it leaves in the run folder."""

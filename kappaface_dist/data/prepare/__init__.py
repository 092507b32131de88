"""Making, converting and checking datasets."""

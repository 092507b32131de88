"""Who of one set is in another: classes that are one person."""

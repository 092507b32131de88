"""What people read of an evaluation: pages, plots, tables."""

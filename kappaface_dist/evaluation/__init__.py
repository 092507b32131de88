"""Verification protocols."""

"""The lists and files that say what is compared with what."""

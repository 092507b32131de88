"""What can be set: the keys with their defaults and checks, and the files they come from."""

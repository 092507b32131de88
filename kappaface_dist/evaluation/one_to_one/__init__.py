"""1:1: verification of pairs, with its intervals."""

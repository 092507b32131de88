"""Templates, several images pooled to one: the protocols of IJB-B, IJB-C and IJB-S."""

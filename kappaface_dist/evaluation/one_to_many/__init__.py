"""1:N: searching galleries for faces, and the numbers of identification."""

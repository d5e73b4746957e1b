"""Functions without state: boundary search, large-kernel convolution, counter-based random numbers, counts."""

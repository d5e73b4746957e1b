"""Functions without state: boundary search, large-kernel convolution, spans, counter-based random numbers."""

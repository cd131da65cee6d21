"""Building blocks with parameters, shared by encoders and objectives."""

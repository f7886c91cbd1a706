"""Building blocks that several denoisers share."""

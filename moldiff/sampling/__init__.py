"""Samplers, time grids and the loop that runs them."""

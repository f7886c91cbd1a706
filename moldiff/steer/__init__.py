"""Specifications of properties: conditions, gradient guidance, rewards."""

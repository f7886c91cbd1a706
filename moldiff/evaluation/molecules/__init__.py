"""Metrics of molecules."""

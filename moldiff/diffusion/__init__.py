"""The mathematics of noising and denoising: no networks and no chemistry."""

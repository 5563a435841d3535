"""Pretraining of a backbone by denoising: geometries are enough, nothing needs labels."""

"""Sweeps: the points of an experiment file, each with its seeds, launched and relaunched."""

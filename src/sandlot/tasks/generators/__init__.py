"""Seeded makers of task sets of any size, with the truth known by construction."""

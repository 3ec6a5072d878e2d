"""Hydra configuration groups; every default value lives here."""

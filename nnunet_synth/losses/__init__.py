"""Equations as functions; they know torch and nothing else."""

"""Measures the engine beside the kernel's own ksmd; see run.py."""

"""Samepage merging for Linux: an engine in user space, and the kernel's KSM driven."""

__version__ = "0.1.0"

"""The engine: samepage merging in user space. See docs/explanation/engine.md."""

"""Four workers that load the same model, merged live; `make demo` runs it."""

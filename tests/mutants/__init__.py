"""Files that are nearly right: valid ones with one to three changes. `python -m tests.mutants` meets them by the
thousand."""

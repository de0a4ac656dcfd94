"""Files that are nearly right: valid ones with one to three changes, by the thousand. `python -m tests.mutants` runs them."""

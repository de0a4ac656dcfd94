"""The whole job on a procedural phantom, with the commands that a user would type."""

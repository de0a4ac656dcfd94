"""Numbers and pictures about segmentations and synthetic images."""

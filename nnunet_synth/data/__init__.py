"""What nnU-Net reads and what we add to it: the unlabelled pool, layouts, splits, loaders, slices, the phantom."""

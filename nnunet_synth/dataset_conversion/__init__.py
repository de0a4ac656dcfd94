"""Public datasets as nnU-Net raw datasets: one file a dataset, one writer for all."""

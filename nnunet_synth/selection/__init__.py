"""Which model of which synthesizer is good enough to train with? LcGAN's three criteria, and its filter of images."""

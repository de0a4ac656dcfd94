"""Are synthetic images like real ones, and as varied? Measures over sets of images, and the report of them."""

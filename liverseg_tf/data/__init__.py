"""Cases, volumes, slices, augmentation, lesion synthesis and phantoms."""

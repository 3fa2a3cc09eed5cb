"""DICOM in: which CT series lie in a folder, a file or an archive, and their voxels."""

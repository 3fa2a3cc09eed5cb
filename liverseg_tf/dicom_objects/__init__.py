"""DICOM out: a mask as segmentation, structured report, structure set and document, each read again after writing."""

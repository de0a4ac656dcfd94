"""Lesions put into, changed in and taken out of a scan, by their shape and their mean intensity (UM2I V.C)."""

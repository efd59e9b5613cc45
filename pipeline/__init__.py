"""The engine: fingerprints, artifacts, planning and running; nothing about segmentation."""

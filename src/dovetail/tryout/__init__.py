"""`dovetail try`: whether pre-training is worth it on one's own images, and which, within a wall time."""

"""`dovetail try`: measures whether pre-training is worth it on the user's images, within a time budget."""

"""Labelled datasets: classes, masks, boxes, their formats and their faults."""

"""The report page of a run, and visualisations of its features."""

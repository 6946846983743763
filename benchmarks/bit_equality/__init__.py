"""Show that a change of the code changes no number: the same tiny jobs on two commits, compared bit for bit."""

"""Tables of trials: which are run, what each found, and what follows."""

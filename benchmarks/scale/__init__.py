"""What pre-training costs: constants counted for every method on this machine, and formulas that scale them."""

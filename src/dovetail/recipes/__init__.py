"""Methods as plain data: each recipe is a function that returns terms, views, schedules and optimiser rules."""

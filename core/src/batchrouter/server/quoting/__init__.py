"""From a question to a locked price: which lanes may run it, which are cheapest, and why."""

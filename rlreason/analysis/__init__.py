"""Reading run folders, and what the traces in them say: pure functions over data frames."""

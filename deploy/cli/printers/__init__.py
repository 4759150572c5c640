"""Messages as text for people: pure functions."""

"""The built-in networks, and the way to one's own."""

"""What a node asks of its containers, and the hooks it runs in them: pods/probing.py's ports for real."""

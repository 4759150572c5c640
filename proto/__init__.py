"""What every side agrees on: messages, and what gives them their meaning."""

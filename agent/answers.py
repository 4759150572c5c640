"""How requests over tunnels are refused, and which container one means."""

from __future__ import annotations


class Refusal(Exception):
    """The request cannot be answered; the message goes to the person who asked."""

"""What can go wrong here, in one word: a sentence for the person at the terminal."""


class RigError(Exception):
    """The rig cannot do what was asked; the message says what to look at. Never a bug of the caller."""

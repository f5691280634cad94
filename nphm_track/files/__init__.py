"""The doors to the user's files: what is read from outside and what is written beside it."""

"""Capture sessions: many takes of several people, tracked unattended by local processes or on a Ray cluster."""

"""A face tracked while it is filmed: capture, causal tracking, and packets for the programs that show it."""

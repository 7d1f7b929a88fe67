"""How a network is measured: exact counts, timing, and what only the live network can tell."""

"""How networks are measured: data, training, counting, timing, the gate, runs, and the command line."""

"""From paired block times to verdicts."""

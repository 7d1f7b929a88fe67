"""From a plan to its records: resolve, run, measure, store."""

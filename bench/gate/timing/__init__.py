"""Where and how the blocks of a comparison are timed."""

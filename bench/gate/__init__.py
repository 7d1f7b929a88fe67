"""The regression gate: exact gates, paired timing, one verdict a model."""

"""Exact counts: parameters, multiply-accumulates, activations, and what a unit sees."""

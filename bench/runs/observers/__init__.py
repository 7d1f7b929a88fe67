"""Those who follow a plan: displays, the live log, trackers."""

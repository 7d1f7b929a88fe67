"""One family a file; every file here is found and imported by `zoo.registry`."""

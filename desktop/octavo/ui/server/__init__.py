"""The server page: the endpoint for other programs, switched on and off, and its requests."""

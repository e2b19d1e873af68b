"""What `octavo bench` measures: our engine, its peers on the same file, and its HTTP endpoint."""

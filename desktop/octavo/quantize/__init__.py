"""Makes smaller models of models on disk, in a child process, and measures what that cost."""

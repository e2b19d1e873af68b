"""What the machine does now, and which graphics cards it has; no Qt, no torch, no CUDA context."""

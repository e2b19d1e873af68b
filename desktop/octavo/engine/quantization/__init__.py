"""Storage formats of quantised weights, unpacked in plain torch: the truth kernels must match."""

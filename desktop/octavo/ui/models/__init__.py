"""The models page: the local library, what fits, and the offer of the starter model."""

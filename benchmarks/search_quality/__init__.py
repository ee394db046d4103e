"""Claim: a search that measures finds better accuracy/latency fronts than others do in the same time. See ``__main__``."""

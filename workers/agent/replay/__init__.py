"""A device that needs no hardware: recorded measurements played back, or latencies computed from the file."""

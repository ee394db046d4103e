"""Is an uploaded file what its sender says it is? Headers are read, nothing is loaded, no pickle is ever opened."""

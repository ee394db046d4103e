"""Ground floor: nouns, ports, wire messages and errors. Imports the standard library and pydantic only."""

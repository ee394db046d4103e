"""Pages of docs/reference that are made from the code, a module each; ``text()`` gives the page."""

"""The commands of ``pruneloop``, a file a noun. Entry points: heavy parts are imported when a command runs."""

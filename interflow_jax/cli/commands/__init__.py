"""A file per command; each has `main(arguments)`, which returns an exit status or raises."""

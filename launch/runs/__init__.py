"""The runs of a folder: what each is doing, as a table and as a live view."""

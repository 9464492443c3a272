"""A run's directory and files, and the errors, options and devices that every command shares."""

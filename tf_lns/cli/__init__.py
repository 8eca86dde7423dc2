"""The command line `tf-lns`."""

"""What `make demo` runs on: images made from Debian packages."""

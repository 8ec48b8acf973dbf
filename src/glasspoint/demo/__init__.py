"""What `glasspoint demo` is made of: a story and a light traffic on real servers. Needs the extra `demo`."""

"""`glasspoint demo`: a story and a light traffic of conversations on real servers. Needs the extra `demo`."""

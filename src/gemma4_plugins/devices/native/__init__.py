"""Native code: finds a C compiler, compiles, and runs on threads."""

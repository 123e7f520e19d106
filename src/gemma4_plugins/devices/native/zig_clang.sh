#!/bin/sh
# A clang for tinygrad out of the Python package ziglang. tinygrad runs CC as one program with arguments of its own, so
# this script stands between them; the two names in @ are filled in where it is written. -resource-dir is needed for
# clang's own headers. "zig cc" does not do: it refuses tinygrad's target, and its objects do not load there.
exec @ZIG@ clang -resource-dir @LIB@ "$@"

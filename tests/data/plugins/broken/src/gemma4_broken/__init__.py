"""Fails while it is imported, as a plugin with a missing dependency does."""

import a_module_that_nobody_has  # noqa: F401

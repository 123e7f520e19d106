"""The demo model: what it learns from, how it is built, trained and scored."""

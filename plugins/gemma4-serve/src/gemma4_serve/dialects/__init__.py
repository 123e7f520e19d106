"""What each interface's bodies mean: requests into ``Asked``, answers into objects and events."""

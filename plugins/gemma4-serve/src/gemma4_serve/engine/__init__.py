"""Engine clients: what answers requests behind the HTTP side."""

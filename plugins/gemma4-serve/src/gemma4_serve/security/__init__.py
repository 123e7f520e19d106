"""Who may ask: hosts, origins, keys; bodies within bounds; media from allowed hosts alone."""

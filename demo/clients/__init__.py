"""Programs that know nothing of vcuda. Each speaks to the driver in another way; all follow script.py."""

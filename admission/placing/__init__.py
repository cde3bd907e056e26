"""Where a pod goes and when: all cards of a cluster (cluster.py, table.py), and its queues (queue.py).

Pure: no server, no clock, no file. The controller tells what is there, and does what is decided here.
"""

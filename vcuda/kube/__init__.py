"""What vcuda and Kubernetes say to each other: names, what a pod asks, what it was given, what a node has.

Values only, shared by `admission` and `deviceplugin`; nothing here talks to a server.
"""

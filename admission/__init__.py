"""The cluster side, not written yet: webhook, queue and scheduler extender.

It will validate what pods ask for, hold them in order of arrival, and choose node and card for each. It
stands on `vcuda` and knows nothing of `deviceplugin`.
"""

"""The cluster side: the webhook that pods come through which ask for a share, and who places them.

It stands on `vcuda` and knows nothing of `deviceplugin`. What is pure is apart from what serves: `aliases`,
`mutate`, `patch`, `review` and `certificate` are values and functions of them, and so is `placing`.
"""

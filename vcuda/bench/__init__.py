"""The benchmark of core shares: what each container got of a card's time, against what it was granted.

`cases` says what is run, `runs` runs it, `timeline` counts the card's time as the card itself does, `judge`
says what the figures must be, `plots` draws them. `vcuda bench cores` is the command.
"""

"""Who may start, when, and in which order: bounds and quotas, the line before each model's scheduler, and an honest Retry-After.

`bounds` counts, `fair_queue` orders, `gate` judges one placement, `pace` foretells, `line` puts them together for one model. All of
it is synchronous and takes `now`: the router drives it from its event loop (`turn`), the simulator from its clock.
"""

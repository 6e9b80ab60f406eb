"""The chaos bench: real processes, a random fault every two seconds, one judgement at the end. `make chaos` runs it.

`bench` runs it; `load` enqueues, `handlers` execute, `faults` is what happens to them, over the `proxy`; `record` notes
every move of every job inside the database, and `oracle` judges what was noted.
"""
